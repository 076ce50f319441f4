"""The vanilla head: a low-rank Markov bias, logits_k = U_k + W2 W1[x_{k-1}]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

from ...checkpoint.linear import Matrix
from .base import W1, W2, HeadSizes, HeadTensors


@dataclass(frozen=True)
class VanillaHead:
    """The first-order Markov head (paper, section 3.1.2).

    Attributes:
        w1: embedding table `[vocabulary, rank]`.
        w2: output matrix `[output, rank]`.
    """

    NAME: ClassVar[str] = "vanilla"

    w1: Matrix
    w2: Matrix

    @staticmethod
    def matrices(sizes: HeadSizes) -> dict[str, tuple[int, int]]:
        """See `SequentialHead.matrices`; this head has W1 and W2 only."""
        return {}

    @staticmethod
    def vectors(sizes: HeadSizes) -> dict[str, tuple[int]]:
        """See `SequentialHead.vectors`; this head has none."""
        return {}

    @classmethod
    def load(cls, tensors: HeadTensors) -> VanillaHead:
        """See `SequentialHead.load`."""
        return cls(tensors.matrix(W1), tensors.matrix(W2))

    def vector(
        self, previous: mx.array, hidden: mx.array, state: None
    ) -> tuple[mx.array, mx.array, None]:
        """See `Correction.vector`; the hidden row is not read and there is no state."""
        embedding = self.w1.rows(previous)
        return embedding, embedding, None
