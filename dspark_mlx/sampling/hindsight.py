"""Samples the draft of a round whose committed text is known already.

Speculative sampling couples a draft x from q to a text t from p. Given a text, the coupling gives
the distribution of the draft. Under the block rule, let a_0 = 1 and
a_k = min(a_{k-1} p_k(t_k) / q_k(t_k), 1). For any verify length, the draft's first k tokens survive
and equal the text's with probability prod_j min(1, q_j(t_j) / (a_{j-1} p_j(t_j))); this follows
from P(N >= k, x_1..x_k) = q(x_1..x_k) a_k in the rule's proof, see `rejection`. Under the token
rule, a = 1 throughout. So rounds can be sampled from texts without a verify forward for each block,
and have the distribution of real rounds. Summed over t_k, a slot's token survives with probability
sum(min(p_k, q_k / a_{k-1})), which needs no sampled outcome.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from . import Position, finite_rows, likeliest
from .chooser import Chooser
from .noise import gumbel
from .transform import normalize


class Hindsight:
    """The `Pick` of one round whose committed text is known.

    Tokens after a rejected one have no effect on the chances. The rejected token itself is sampled
    as under the token rule, from which the block rule differs a little.

    Args:
        chooser: the request's settings, without logits processors.
        text: the tokens that were committed after the anchor, int32 `[gamma]`.
        logprobs: the target's log-probabilities at each of them, float32 `[gamma, V]`, see
            `target_logprobs`.
        key: key of the round's randomness.
        block: True for the block rule, False for the token rule.
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
        accept_key, draft_key = mx.random.split(key)
        self._uniform = mx.random.uniform(shape=(text.size,), key=accept_key)
        self._draft_keys = mx.random.split(draft_key, text.size)
        self._block = block
        self._walk = mx.ones((1,))
        self._alive = mx.ones((1,), dtype=mx.bool_)
        self._survived: list[mx.array] = []
        self._chances: list[mx.array] = []

    @property
    def outcome(self) -> mx.array:
        """What became of each slot, float32 `[2, gamma]`; to be read after the block is drafted.

        The first row is 1 for each token that survived with all before it, else 0. The second row
        is the chance of that given that all tokens before it survived; 0 after the first rejection.
        """
        survived = mx.concatenate(self._survived).astype(mx.float32)
        return mx.stack([survived, mx.concatenate(self._chances)])

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
        # A slot with numbers that are not finite never survives: its q is 0.
        q = mx.where(finite[:, None], mx.exp(normalize(weights)), 0.0)
        p, column, draftable = row, token, mx.ones((1,), dtype=mx.bool_)
        if ids is not None:
            p, column = mx.take(row, ids, axis=-1), likeliest((ids == token)[None])
            draftable = ids[column] == token
        p = self._walk * p
        # Rounding can take the sum of whole distributions a little above 1.
        chance = mx.minimum(mx.minimum(p, q).sum(axis=-1) / self._walk, 1.0)
        self._chances.append(mx.where(self._alive, chance, 0.0))
        proposed = mx.where(draftable, q[0, column], 0.0)
        wanted = self._walk * row[0, token]
        keep = self._alive & (self._uniform[slot] * wanted < proposed)
        residual = mx.where(self._alive, mx.maximum(q - p, 0), q)
        # The residual is empty only when p and q are equal but for rounding.
        residual = mx.where(residual.max(axis=-1, keepdims=True) > 0, residual, q)
        noise = gumbel(self._draft_keys[slot], q.shape[-1])
        other = likeliest(mx.where(residual > 0, mx.log(residual), -mx.inf) + noise)
        if self._block:
            self._walk = mx.where(keep, mx.minimum(wanted / mx.maximum(proposed, 1e-37), 1), 1.0)
        self._alive = keep
        self._survived.append(keep)
        return mx.where(keep, column, other).astype(mx.int32), None


def target_logprobs(chooser: Chooser, logits: mx.array) -> mx.array:
    """The target's log-probabilities under a request's settings, float32 `[rows, V]`."""
    return normalize(chooser.target_weights(logits, Position(0), None, None).weights)
