"""The draft that a round would have made, given the text that was committed.

Speculative sampling couples a draft x from q to a text t from p. Read backwards, from a text that
is already there, the coupling says what the draft was: with the walk a_0 = 1 and
a_k = min(a_{k-1} p_k(t_k) / q_k(t_k), 1), the first k tokens of the draft survived and are the
text's with probability prod_j min(1, q_j(t_j) / (a_{j-1} p_j(t_j))). That is the block rule's, for
any verify length (P(N >= k, x_1..x_k) = q(x_1..x_k) a_k in its proof, see `rejection`); the token
rule's has a = 1 throughout. So texts and drafts alone give rounds as likely as real ones, and
no block is verified; summed over t_k, a slot's chance is sum(min(p_k, q_k / a_{k-1})), with no
outcome drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from . import Position, finite_rows, likeliest
from .chooser import Chooser
from .noise import gumbel
from .transform import normalize


class Hindsight:
    """The `Pick` of one round whose outcome is known.

    What is drafted behind a rejected token changes no chance. The rejected token itself
    is drawn as by the token rule, which the block rule's differs from a little.

    Args:
        chooser: the request's settings, without logits processors.
        text: the tokens that were committed behind the anchor, int32 `[gamma]`.
        logprobs: the target's at each of them, float32 `[gamma, V]`; see `target_logprobs`.
        key: of the round's randomness.
        block: which of the two rules.
    """

    def __init__(
        self,
        chooser: Chooser,
        text: mx.array,
        logprobs: mx.array,
        key: mx.array,
        block: bool = True,
    ) -> None:
        self._chooser = chooser
        self._text = text
        self._p = mx.exp(logprobs)
        coin_key, draft_key = mx.random.split(key)
        self._coins = mx.random.uniform(shape=(text.size,), key=coin_key)
        self._draft_keys = mx.random.split(draft_key, text.size)
        self._block = block
        self._walk = mx.ones((1,))
        self._alive = mx.ones((1,), dtype=mx.bool_)
        self._kept: list[mx.array] = []
        self._chances: list[mx.array] = []

    @property
    def outcome(self) -> mx.array:
        """Once the block is drafted: float32 `[2, gamma]`.

        Whether each slot's token survived with all before it, and the chance that it would, given
        that those before it did; 0 behind the first rejection.
        """
        kept = mx.concatenate(self._kept).astype(mx.float32)
        return mx.stack([kept, mx.concatenate(self._chances)])

    def __call__(
        self, logits: mx.array, ids: mx.array | None, drawn: Sequence[mx.array]
    ) -> tuple[mx.array, None]:
        """See `Pick`."""
        slot = slice(len(drawn), len(drawn) + 1)
        row, token = self._p[slot], self._text[slot]
        vocabulary = row.shape[-1]
        weights = self._chooser.draft_weights(logits, Position(0), drawn, ids, vocabulary, None)
        weights = weights.astype(mx.float32)
        finite = finite_rows(logits) & finite_rows(weights)
        # A slot that is not finite is never kept, as if its chance were 0.
        q = mx.where(finite[:, None], mx.exp(normalize(weights)), 0.0)
        p, column, there = row, token, mx.ones((1,), dtype=mx.bool_)
        if ids is not None:
            p, column = mx.take(row, ids, axis=-1), likeliest((ids == token)[None])
            there = ids[column] == token
        p = self._walk * p
        # Rounding can take the sum of whole distributions a little above 1.
        chance = mx.minimum(mx.minimum(p, q).sum(axis=-1) / self._walk, 1.0)
        self._chances.append(mx.where(self._alive, chance, 0.0))
        proposed = mx.where(there, q[0, column], 0.0)
        wanted = self._walk * row[0, token]
        keep = self._alive & (self._coins[slot] * wanted < proposed)
        left = mx.where(self._alive, mx.maximum(q - p, 0), q)
        # Rounding alone can leave nothing, where p and q are equal but for rounding.
        left = mx.where(left.max(axis=-1, keepdims=True) > 0, left, q)
        noise = gumbel(self._draft_keys[slot], q.shape[-1])
        other = likeliest(mx.where(left > 0, mx.log(left), -mx.inf) + noise)
        if self._block:
            self._walk = mx.where(keep, mx.minimum(wanted / mx.maximum(proposed, 1e-37), 1), 1.0)
        self._alive = keep
        self._kept.append(keep)
        return mx.where(keep, column, other).astype(mx.int32), None


def target_logprobs(chooser: Chooser, logits: mx.array) -> mx.array:
    """The target's log-probabilities under a request's settings, float32 `[rows, V]`."""
    return normalize(chooser.target_weights(logits, Position(0), None, None).weights)
