"""The vanilla head: a low-rank Markov bias, logits_k = U_k + W2 W1[x_{k-1}]."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from ...checkpoint.linear import Matrix


@dataclass(frozen=True)
class VanillaHead:
    """Paper section 3.1.2, equation of the first-order Markov head.

    Attributes:
        w1: embedding table `[vocabulary, rank]`.
        w2: map `[vocabulary, rank]` from the rank to the logits.
    """

    w1: Matrix
    w2: Matrix

    def vector(
        self, previous: mx.array, hidden: mx.array, state: None
    ) -> tuple[mx.array, mx.array, None]:
        """See `SequentialHead.vector`; reads no hidden row and keeps no state."""
        embedding = self.w1.rows(previous)
        return embedding, embedding, None
