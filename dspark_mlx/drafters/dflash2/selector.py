"""DFlash 2's selector: chooses each slot's token from a few, by the token chosen before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import mlx.core as mx

from ...checkpoint.linear import Matrix
from ..block import BlockBuilder
from ..tensors import DrafterTensors
from ..vocabulary import Readout

PREDECESSOR = "candidate_selector.predecessor_codebook"
SUCCESSOR = "candidate_selector.successor_codebook"
PROJECTION = "candidate_selector.hidden_projection"


@dataclass(frozen=True)
class Selector:
    """Scores the k likeliest tokens c of a slot after the token a of the slot before.

    score(c) = U(c) + <A[a] * (P h), B[c]>, where U are the slot's logits and h is its row. All
    other tokens have the logit -inf, so that q is the distribution that the token is drawn from.

    Attributes:
        predecessor: A, `[vocabulary, rank]`.
        successor: B, `[vocabulary, rank]`.
        projection: P, `[rank, hidden]`.
        top_k: how many tokens are scored.
    """

    predecessor: Matrix
    successor: Matrix
    projection: Matrix
    top_k: int

    @classmethod
    def load(cls, top_k: int, tensors: DrafterTensors) -> Self:
        """The selector of a canonical folder; not evaluated."""
        predecessor, successor = tensors.matrix(PREDECESSOR), tensors.matrix(SUCCESSOR)
        return cls(predecessor, successor, tensors.matrix(PROJECTION), top_k)

    def vector(self, previous: mx.array, hidden: mx.array) -> mx.array:
        """A[a] * (P h), whose product with the rows of B is added to the logits, `[n, rank]`.

        Args:
            previous: the token before each slot, int `[n]`.
            hidden: the slots' rows, `[n, hidden]`.
        """
        return self.predecessor.rows(previous) * self.projection(hidden)

    def fill(
        self,
        block: BlockBuilder,
        readout: Readout,
        anchors: mx.array,
        base: mx.array,
        hidden: mx.array,
    ) -> None:
        """See `ParallelDrafter.fill`."""
        size = base.shape[-1]
        count = min(self.top_k, size)
        columns = mx.argpartition(base, kth=size - count, axis=-1)[..., size - count :]
        unary = mx.take_along_axis(base, columns, axis=-1).astype(mx.float32)
        candidates = self.successor.rows(readout.tokens(columns))
        edges = candidates * self.projection(hidden)[..., None, :]
        absent = mx.full((base.shape[0], size), -mx.inf)
        previous = anchors
        for slot in range(base.shape[1]):
            bias = edges[:, slot] @ self.predecessor.rows(previous)[..., None]
            scores = unary[:, slot] + bias.squeeze(-1).astype(mx.float32)
            previous = block.add(mx.put_along_axis(absent, columns[:, slot], scores, axis=-1))
