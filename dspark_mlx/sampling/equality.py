"""The rule of equality: the target chooses at every row, and a draft survives where it is the same.

Greedy decoding is this rule. With Gumbel noise g that belongs to the position it samples: the
target's choice argmax(log p + g) has the target's distribution, and is the same with and without
drafts. The drafter adds the same g, so both tend to choose alike: with probability
(1 - TV) / (1 + TV) at least, TV the distance of p and q. No schedule can change the output. A draft
from logits that are not finite is never accepted, even where it is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from ..types import Draft
from . import Judgement, Pick, Position, finite_drafts, greedy, likeliest
from .chooser import Chooser
from .noise import Noise, gumbel


class Equality:
    """See the module.

    Args:
        chooser: the request's settings.
        noise: by position; None takes the likeliest token.
        vocabulary: the target's.
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
    def kept(self) -> list[mx.array]:
        """See `Sampler.kept`."""
        return self._noise.kept if self._noise else []

    def propose(self, place: Position, gamma: int) -> Pick:
        """See `Sampler.propose`."""
        if self._noise is None and not self._chooser.needs_prefix:
            return greedy
        noise, coins = self._at(place.position, gamma)

        def pick(
            logits: mx.array, ids: mx.array | None, drawn: Sequence[mx.array]
        ) -> tuple[mx.array, None]:
            slot = slice(len(drawn), len(drawn) + 1)
            coin = None if coins is None else coins[slot]
            chooser, vocabulary = self._chooser, self._vocabulary
            weights = chooser.draft_weights(logits, place, drawn, ids, vocabulary, coin)
            if noise is not None and self._noisy_drafts:
                row = noise[slot]
                weights = weights + (row if ids is None else mx.take(row, ids, axis=-1))
            return likeliest(weights), None

        return pick

    def judge(self, logits: mx.array, place: Position, draft: Draft | None) -> Judgement:
        """See `Sampler.judge`."""
        rows = logits.shape[0]
        block = draft.tokens[: rows - 1] if draft else None
        noise, coins = self._at(place.position, rows)
        judged = self._chooser.target_weights(logits, place, block, coins)
        choices = likeliest(judged.weights if noise is None else judged.weights + noise)
        accepted, last, finite = None, choices, None
        if draft is not None and block is not None and block.size:
            finite = finite_drafts(draft, block.size)
            kept = mx.logical_and(block == choices[:-1], finite)
            accepted = mx.cumprod(kept).sum(keepdims=True).astype(mx.int32)
            last = choices[accepted]
        elif block is not None:
            accepted = mx.zeros((1,), dtype=mx.int32)
        return self._chooser.judgement(judged, block, accepted, last, finite)

    def _at(self, position: int, rows: int) -> tuple[mx.array | None, mx.array | None]:
        """Noise `[rows, vocabulary]` and XTC's coins of the tokens after `position`."""
        if self._noise is None:
            return None, None
        keys = self._noise.at(position + 1, rows)
        # The noise itself takes the keys as they are, so the coins need others.
        coins = self._chooser.coins(keys + mx.array([0, 1], dtype=mx.uint32))
        return gumbel(keys, self._vocabulary), coins
