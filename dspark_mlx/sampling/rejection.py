"""The rule of rejection: a draft from q survives so often that what is committed is the target's p.

"token" is the paper's rule (section 3.1, speculative sampling): x_k survives, given that its prefix
did, with probability min(1, p_k(x_k) / q_k(x_k)); a rejected one is replaced from max(p - q, 0).

"block" judges the block as a whole (Sun et al. 2024, "Block Verification Accelerates Speculative
Decoding"): with a_k = min(a_{k-1} p_k(x_k) / q_k(x_k), 1), a prefix of n tokens is kept, for the
largest n that draws below h_n = s_n / (s_n + 1 - a_n), s_n = sum(max(a_n p_{n+1} - q_{n+1}, 0)), or
below a_n at the block's end; the next token comes from max(a_n p_{n+1} - q_{n+1}, 0). On average it
never accepts less. The proof goes by the tree of prefixes and asks of each only whether the block
ends there, so it holds for every schedule that does not see the token it judges.

A block ends before the first slot whose p or q is not finite, as if no more had been scheduled:
both are known before the slot's token is. The next token then comes from p alone.
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
    """See the module.

    Args:
        chooser: the request's settings.
        noise: fresh in every round. What the schedule learns depends on rejected drafts too, and
            noise used again at their positions would let it see what it judges.
        vocabulary: the target's.
        sampled_drafts: False where q is all on the drafter's likeliest token.
        block: which of the two rules.
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
        self._coins: mx.array | None = None

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
        return self._noise.kept

    def propose(self, place: Position, gamma: int) -> Pick:
        """See `Sampler.propose`."""
        coin_key, draft_key = self._noise.fresh(2)
        # The target tosses the same coins at the same slots, so that p and q keep the same tokens.
        coins = self._coins = self._chooser.coins(mx.random.split(coin_key, gamma + 1))
        noise: list[mx.array] = []

        def pick(
            logits: mx.array, ids: mx.array | None, drawn: Sequence[mx.array]
        ) -> tuple[mx.array, mx.array]:
            slot = slice(len(drawn), len(drawn) + 1)
            coin = None if coins is None else coins[slot]
            chooser, vocabulary = self._chooser, self._vocabulary
            weights = chooser.draft_weights(logits, place, drawn, ids, vocabulary, coin)
            if not self._sampled_drafts:
                column = likeliest(weights)
                point = mx.arange(weights.shape[-1]) == column
                return column, mx.where(point, 0.0, -mx.inf)[None]
            if not noise:
                noise.append(gumbel(mx.random.split(draft_key, gamma), weights.shape[-1]))
            return likeliest(weights + noise[0][slot]), weights

        return pick

    def judge(self, logits: mx.array, place: Position, draft: Draft | None) -> Judgement:
        """See `Sampler.judge`."""
        scheduled = logits.shape[0] - 1
        block = draft.tokens[:scheduled] if draft else None
        coin_key, accept_key, last_key = self._noise.fresh(3)
        coins = self._chooser.coins(coin_key[None]) if draft is None else self._coins
        coins = None if coins is None else coins[: scheduled + 1]
        judged = self._chooser.target_weights(logits, place, block, coins)
        p = normalize(judged.weights)
        accepted, row, finite = None, p, None
        if draft is not None:
            accepted = mx.zeros((1,), dtype=mx.int32)
            row = p[:1]
        if draft is not None and scheduled:
            assert draft.weights is not None and draft.columns is not None
            weights = draft.weights[:scheduled]
            sums = mx.logsumexp(weights, axis=-1, keepdims=True)
            q, finite = weights - sums, finite_drafts(draft, scheduled)
            sound = finite & mx.isfinite(sums.squeeze(-1)) & (judged.faults[:-1] == 0)
            # The slots before the first that is not.
            sound = mx.cumprod(sound).astype(mx.bool_)
            drawn = mx.take_along_axis(q, draft.columns[:scheduled, None], axis=-1)
            ratios = mx.take_along_axis(p[:-1], draft.tokens[:scheduled, None], axis=-1) - drawn
            uniform = mx.random.uniform(shape=(scheduled,), key=accept_key)
            rule = _keep_block if self._block else _keep_tokens
            ratios = mx.where(sound, ratios.squeeze(-1), -mx.inf)
            accepted, scale = rule(ratios, p, q, draft.ids, uniform, sound)
            row = _residual(p, q, draft.ids, accepted, scale, sound.sum())
        last = likeliest(row + gumbel(last_key[None], self._vocabulary))
        return self._chooser.judgement(judged, block, accepted, last, finite)


def _keep_tokens(
    ratios: mx.array,
    p: mx.array,
    q: mx.array,
    ids: mx.array | None,
    uniform: mx.array,
    sound: mx.array,
) -> tuple[mx.array, mx.array]:
    """Accepted count, int32 `[1]`, and the residual's weight of p, float32 `[1, 1]`.

    Args:
        ratios: log p_k(x_k) / q_k(x_k), float32 `[scheduled]`; -inf where the slot is not sound.
        p, q: log-probabilities, float32 `[scheduled + 1, V]` and `[scheduled, size]`.
        ids: see `Draft`.
        uniform: coins in [0, 1), float32 `[scheduled]`.
        sound: whether p and q are finite in the slot and all before it, bool `[scheduled]`.
    """
    kept = mx.log(uniform) < ratios
    return mx.cumprod(kept).sum(keepdims=True).astype(mx.int32), mx.ones((1, 1))


def _keep_block(
    ratios: mx.array,
    p: mx.array,
    q: mx.array,
    ids: mx.array | None,
    uniform: mx.array,
    sound: mx.array,
) -> tuple[mx.array, mx.array]:
    """See `_keep_tokens`."""
    # a_k = min(a_{k-1} r_k, 1) for all k at once: the log of a walk reflected at 0.
    walk = mx.cumsum(ratios)
    survival = mx.exp(walk - mx.maximum(mx.cummax(walk), 0))
    keep = survival[-1:]
    if ratios.size > 1:
        inner = survival[:-1, None]
        inside = mx.exp(p[1:-1] if ids is None else mx.take(p[1:-1], ids, axis=-1))
        surplus = mx.maximum(inner * inside - mx.exp(q[1:]), 0).sum(axis=-1)
        if ids is not None:
            # No draft can propose what is outside the draft vocabulary: there q is 0.
            surplus = surplus + survival[:-1] * mx.maximum(1 - inside.sum(axis=-1), 0)
        below = surplus + 1 - survival[:-1]
        chance = mx.where(below > 0, surplus / below, 1)
        # The block ends where the next slot is not sound.
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

    p at the block's end, `end` slots from its start; also where rounding leaves nothing, which it
    can only do where p and q are equal but for rounding.
    """
    scheduled = q.shape[0]
    target = p[accepted]
    rejected = (accepted < end)[:, None]
    drafted = mx.where(rejected, mx.exp(q[mx.minimum(accepted, scheduled - 1)]), 0)
    weights = mx.where(rejected, scale, 1) * mx.exp(target)
    if ids is None:
        weights = weights - drafted
    else:
        less = mx.take(weights, ids, axis=-1) - drafted
        weights = mx.put_along_axis(weights, ids[None].astype(mx.int32), less, axis=-1)
    left = mx.where(weights > 0, mx.log(weights), -mx.inf)
    return mx.where(left.max(axis=-1, keepdims=True) > -mx.inf, left, target)
