"""The rule of equality: the target chooses a token at every row, and an equal draft survives.

Greedy decoding is this rule with argmax. Sampling is this rule with Gumbel noise g, a function of
the sampled token's position: the target's choice argmax(log p + g) has the target's distribution,
and is the same with and without drafts. The drafter adds the same g, so that it chooses the same
token with probability at least (1 - TV) / (1 + TV), where TV is the total variation distance of p
and q. No schedule can change the output. A draft from logits that are not finite is never accepted,
even when it equals the target's choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from ..types import Draft
from . import Judgement, Pick, Position, finite_drafts, greedy, likeliest
from .chooser import Chooser
from .noise import Noise, gumbel


class Equality:
    """The rule of equality for one request.

    Args:
        chooser: the request's settings.
        noise: keys by position; None takes the likeliest token.
        vocabulary: size of the target's vocabulary.
        noisy_drafts: False drafts the likeliest tokens, without noise.
    """

    deterministic = True

    def __init__(
        self, chooser: Chooser, noise: Noise | None, vocabulary: int, noisy_drafts: bool = True
    ) -> None:
        self._chooser = chooser
        self._noise = noise
        self._vocabulary = vocabulary
        self._noisy_drafts = noisy_drafts

    @property
    def temperature(self) -> float:
        """See `Sampler.temperature`."""
        return self._chooser.temperature

    @property
    def needs_prefix(self) -> bool:
        """See `Sampler.needs_prefix`."""
        return self._chooser.needs_prefix

    @property
    def arrays(self) -> list[mx.array]:
        """See `Sampler.arrays`."""
        return self._noise.arrays if self._noise else []

    def propose(self, position: Position, gamma: int) -> Pick:
        """See `Sampler.propose`."""
        if self._noise is None and not self._chooser.needs_prefix:
            return greedy
        noise, use_xtc = self._randomness(position.index, gamma)

        def pick(
            logits: mx.array, ids: mx.array | None, drawn: Sequence[mx.array]
        ) -> tuple[mx.array, None]:
            slot = slice(len(drawn), len(drawn) + 1)
            slot_xtc = None if use_xtc is None else use_xtc[slot]
            chooser, vocabulary = self._chooser, self._vocabulary
            weights = chooser.draft_weights(logits, position, drawn, ids, vocabulary, slot_xtc)
            if noise is not None and self._noisy_drafts:
                row = noise[slot]
                weights = weights + (row if ids is None else mx.take(row, ids, axis=-1))
            return likeliest(weights), None

        return pick

    def judge(self, logits: mx.array, position: Position, draft: Draft | None) -> Judgement:
        """See `Sampler.judge`."""
        rows = logits.shape[0]
        block = draft.tokens[: rows - 1] if draft else None
        noise, use_xtc = self._randomness(position.index, rows)
        target = self._chooser.target_weights(logits, position, block, use_xtc)
        choices = likeliest(target.weights if noise is None else target.weights + noise)
        accepted, last, finite = None, choices, None
        if draft is not None and block is not None and block.size:
            finite = finite_drafts(draft, block.size)
            survives = mx.logical_and(block == choices[:-1], finite)
            accepted = mx.cumprod(survives).sum(keepdims=True).astype(mx.int32)
            last = choices[accepted]
        elif block is not None:
            accepted = mx.zeros((1,), dtype=mx.int32)
        return self._chooser.judgement(target, block, accepted, last, finite)

    def _randomness(self, index: int, rows: int) -> tuple[mx.array | None, mx.array | None]:
        """Noise `[rows, vocabulary]` and XTC's draws `[rows, 1]` for the tokens after `index`."""
        if self._noise is None:
            return None, None
        keys = self._noise.at(index + 1, rows)
        # XTC needs keys other than those of the noise.
        use_xtc = self._chooser.draw_xtc(keys + mx.array([0, 1], dtype=mx.uint32))
        return gumbel(keys, self._vocabulary), use_xtc
