"""The gated head: a Markov bias with a gate that reads the row, W2 (sigmoid(Wg [h;e] + b) * e)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

from ...checkpoint.linear import Matrix
from .base import W1, W2, HeadSizes, HeadTensors

_GATE = "markov_head.gate_proj"


@dataclass(frozen=True)
class GatedHead:
    """DeepSpec's gated variant of the Markov head; e is W1[x_{k-1}] and h is the hidden row.

    Attributes:
        w1: embedding table `[vocabulary, rank]`.
        w2: output matrix `[output, rank]`.
        gate: Wg, `[rank, hidden + rank]`.
        gate_bias: b, `[rank]`.
    """

    NAME: ClassVar[str] = "gated"

    w1: Matrix
    w2: Matrix
    gate: Matrix
    gate_bias: mx.array

    @staticmethod
    def matrices(sizes: HeadSizes) -> dict[str, tuple[int, int]]:
        """See `SequentialHead.matrices`."""
        return {_GATE: (sizes.rank, sizes.hidden + sizes.rank)}

    @staticmethod
    def vectors(sizes: HeadSizes) -> dict[str, tuple[int]]:
        """See `SequentialHead.vectors`."""
        return {f"{_GATE}.bias": (sizes.rank,)}

    @classmethod
    def load(cls, tensors: HeadTensors) -> GatedHead:
        """See `SequentialHead.load`."""
        gate, bias = tensors.matrix(_GATE), tensors.vector(f"{_GATE}.bias")
        return cls(tensors.matrix(W1), tensors.matrix(W2), gate, bias)

    def vector(
        self, previous: mx.array, hidden: mx.array, state: None
    ) -> tuple[mx.array, mx.array, None]:
        """See `Correction.vector`; there is no state."""
        embedding = self.w1.rows(previous)
        gate = self.gate.add_to(self.gate_bias, mx.concatenate([hidden, embedding], axis=-1))
        return mx.sigmoid(gate) * embedding, embedding, None
