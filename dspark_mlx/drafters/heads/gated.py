"""The gated head: a Markov bias whose gate sees the row, W2 (sigmoid(Wg [h;e] + b) * e)."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from ...checkpoint.linear import Matrix


@dataclass(frozen=True)
class GatedHead:
    """The gated variant of DeepSpec's Markov head.

    Attributes:
        w1: embedding table `[vocabulary, rank]`.
        w2: map `[vocabulary, rank]` from the rank to the logits.
        gate: Wg, `[rank, hidden + rank]`.
        gate_bias: b, `[rank]`.
    """

    w1: Matrix
    w2: Matrix
    gate: Matrix
    gate_bias: mx.array

    def vector(
        self, previous: mx.array, hidden: mx.array, state: None
    ) -> tuple[mx.array, mx.array, None]:
        """See `SequentialHead.vector`; keeps no state."""
        embedding = self.w1.rows(previous)
        gate = self.gate.add_to(self.gate_bias, mx.concatenate([hidden, embedding], axis=-1))
        return mx.sigmoid(gate) * embedding, embedding, None
