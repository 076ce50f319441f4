"""The rule of rejection: drafts from q are rejected so that committed tokens have distribution p.

The token rule is the paper's (section 3.1, speculative sampling): x_k survives, given that its
prefix did, with probability min(1, p_k(x_k) / q_k(x_k)); a rejected token is replaced by a sample
from max(p - q, 0).

The block rule judges the block as a whole (Sun et al. 2024, "Block Verification Accelerates
Speculative Decoding"). Let a_0 = 1, a_k = min(a_{k-1} p_k(x_k) / q_k(x_k), 1) and
s_n = sum(max(a_n p_{n+1} - q_{n+1}, 0)). Each n has a uniform number, which passes below
h_n = s_n / (s_n + 1 - a_n), or below a_n where n is the block's end. The n tokens of the largest n
that passes survive, and the next token is sampled from max(a_n p_{n+1} - q_{n+1}, 0). On average
the rule accepts at least as many tokens as the token rule. Its proof follows the tree of prefixes
and uses only whether the block ends at each, so it holds for every schedule that does not see the
token it judges.

A block ends before the first slot whose p or q is not finite, as if no more slots had been
scheduled: p and q are known before the slot's token is. The next token is then sampled from p.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from ..types import Draft
from . import Judgement, Pick, Position, finite_drafts, likeliest
from .chooser import Chooser
from .noise import Noise, gumbel
from .transform import normalize


class Rejection:
    """The rule of rejection for one request.

    Args:
        chooser: the request's settings.
        noise: the request's keys; every round uses fresh ones. Policies learn from rejected drafts
            too, so noise reused at a rejected draft's position would show the schedule the token
            it judges.
        vocabulary: size of the target's vocabulary.
        sampled_drafts: False drafts the drafter's likeliest tokens, so that q is 1 on each of them.
        block: True for the block rule, False for the token rule.
    """

    deterministic = False

    def __init__(
        self,
        chooser: Chooser,
        noise: Noise,
        vocabulary: int,
        sampled_drafts: bool = True,
        block: bool = True,
    ) -> None:
        self._chooser = chooser
        self._noise = noise
        self._vocabulary = vocabulary
        self._sampled_drafts = sampled_drafts
        self._block = block
        self._use_xtc: mx.array | None = None

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
        return self._noise.arrays

    def propose(self, position: Position, gamma: int) -> Pick:
        """See `Sampler.propose`."""
        xtc_key, draft_key = self._noise.fresh(2)
        # `judge` uses the same draws, so that XTC treats p and q alike in every slot.
        use_xtc = self._use_xtc = self._chooser.draw_xtc(mx.random.split(xtc_key, gamma + 1))
        noise: list[mx.array] = []

        def pick(
            logits: mx.array, ids: mx.array | None, drawn: Sequence[mx.array]
        ) -> tuple[mx.array, mx.array]:
            slot = slice(len(drawn), len(drawn) + 1)
            slot_xtc = None if use_xtc is None else use_xtc[slot]
            chooser, vocabulary = self._chooser, self._vocabulary
            weights = chooser.draft_weights(logits, position, drawn, ids, vocabulary, slot_xtc)
            if not self._sampled_drafts:
                column = likeliest(weights)
                point = mx.arange(weights.shape[-1]) == column
                return column, mx.where(point, 0.0, -mx.inf)[None]
            if not noise:
                noise.append(gumbel(mx.random.split(draft_key, gamma), weights.shape[-1]))
            return likeliest(weights + noise[0][slot]), weights

        return pick

    def judge(self, logits: mx.array, position: Position, draft: Draft | None) -> Judgement:
        """See `Sampler.judge`."""
        scheduled = logits.shape[0] - 1
        block = draft.tokens[:scheduled] if draft else None
        xtc_key, accept_key, last_key = self._noise.fresh(3)
        use_xtc = self._chooser.draw_xtc(xtc_key[None]) if draft is None else self._use_xtc
        use_xtc = None if use_xtc is None else use_xtc[: scheduled + 1]
        target = self._chooser.target_weights(logits, position, block, use_xtc)
        p = normalize(target.weights)
        accepted, row, finite = None, p, None
        if draft is not None:
            accepted = mx.zeros((1,), dtype=mx.int32)
            row = p[:1]
        if draft is not None and scheduled:
            assert draft.weights is not None and draft.columns is not None
            weights = draft.weights[:scheduled]
            sums = mx.logsumexp(weights, axis=-1, keepdims=True)
            q, finite = weights - sums, finite_drafts(draft, scheduled)
            sound = finite & mx.isfinite(sums.squeeze(-1)) & (target.faults[:-1] == 0)
            # Slots after one that is not sound are not sound either.
            sound = mx.cumprod(sound).astype(mx.bool_)
            drawn = mx.take_along_axis(q, draft.columns[:scheduled, None], axis=-1)
            ratios = mx.take_along_axis(p[:-1], draft.tokens[:scheduled, None], axis=-1) - drawn
            uniform = mx.random.uniform(shape=(scheduled,), key=accept_key)
            rule = _keep_block if self._block else _keep_tokens
            ratios = mx.where(sound, ratios.squeeze(-1), -mx.inf)
            ids = _ids_of_slots(draft, scheduled)
            accepted, scale = rule(ratios, p, q, ids, uniform, sound)
            row = _residual(p, q, ids, accepted, scale, sound.sum())
        last = likeliest(row + gumbel(last_key[None], self._vocabulary))
        return self._chooser.judgement(target, block, accepted, last, finite)


def _ids_of_slots(draft: Draft, scheduled: int) -> mx.array | None:
    """The token ids of each slot's columns, int32 `[scheduled, size]`; None for all tokens."""
    if draft.ids is None:
        return None
    shape = (draft.tokens.size, draft.ids.shape[-1])
    return mx.broadcast_to(draft.ids.astype(mx.int32), shape)[:scheduled]


def _keep_tokens(
    ratios: mx.array,
    p: mx.array,
    q: mx.array,
    ids: mx.array | None,
    uniform: mx.array,
    sound: mx.array,
) -> tuple[mx.array, mx.array]:
    """The token rule: accepted count, int32 `[1]`, and factor of p in the residual, `[1, 1]`.

    Args:
        ratios: log p_k(x_k) / q_k(x_k), float32 `[scheduled]`; -inf where the slot is not sound.
        p, q: log-probabilities, float32 `[scheduled + 1, V]` and `[scheduled, size]`.
        ids: the token id of each of q's columns, int32 `[scheduled, size]`; None for all tokens.
        uniform: uniform random numbers in [0, 1), float32 `[scheduled]`.
        sound: True where p and q are finite in the slot and all before it, bool `[scheduled]`.
    """
    survives = mx.log(uniform) < ratios
    return mx.cumprod(survives).sum(keepdims=True).astype(mx.int32), mx.ones((1, 1))


def _keep_block(
    ratios: mx.array,
    p: mx.array,
    q: mx.array,
    ids: mx.array | None,
    uniform: mx.array,
    sound: mx.array,
) -> tuple[mx.array, mx.array]:
    """The block rule; arguments and results as for `_keep_tokens`."""
    # a_k = min(a_{k-1} r_k, 1) for all k at once: log a_k is a walk reflected at 0.
    walk = mx.cumsum(ratios)
    survival = mx.exp(walk - mx.maximum(mx.cummax(walk), 0))
    keep = survival[-1:]
    if ratios.size > 1:
        inner = survival[:-1, None]
        drawable = p[1:-1] if ids is None else mx.take_along_axis(p[1:-1], ids[1:], axis=-1)
        inside = mx.exp(drawable)
        surplus = mx.maximum(inner * inside - mx.exp(q[1:]), 0).sum(axis=-1)
        if ids is not None:
            # q is 0 for tokens outside the draft vocabulary.
            surplus = surplus + survival[:-1] * mx.maximum(1 - inside.sum(axis=-1), 0)
        total = surplus + 1 - survival[:-1]
        chance = mx.where(total > 0, surplus / total, 1)
        # The block ends before a slot that is not sound.
        keep = mx.concatenate([mx.where(sound[1:], chance, survival[:-1]), keep])
    counts = mx.where((uniform < keep) & sound, mx.arange(1, ratios.size + 1), 0)
    accepted = counts.max(keepdims=True).astype(mx.int32)
    return accepted, mx.concatenate([mx.ones((1,)), survival])[accepted][None]


def _residual(
    p: mx.array,
    q: mx.array,
    ids: mx.array | None,
    accepted: mx.array,
    scale: mx.array,
    end: mx.array,
) -> mx.array:
    """Log-weights `[1, V]` of the token after the accepted ones: max(scale p - q, 0), or p.

    They are p's when all `end` sound slots were accepted, and when the residual is empty, which
    happens only when p and q are equal but for rounding.
    """
    slot = mx.minimum(accepted, q.shape[0] - 1)
    target = p[accepted]
    rejected = (accepted < end)[:, None]
    drafted = mx.where(rejected, mx.exp(q[slot]), 0)
    weights = mx.where(rejected, scale, 1) * mx.exp(target)
    if ids is None:
        weights = weights - drafted
    else:
        less = mx.take_along_axis(weights, ids[slot], axis=-1) - drafted
        weights = mx.put_along_axis(weights, ids[slot], less, axis=-1)
    residual = mx.where(weights > 0, mx.log(weights), -mx.inf)
    return mx.where(residual.max(axis=-1, keepdims=True) > -mx.inf, residual, target)
