"""The RNN head: a gated recurrent state along the block; bias = W2 tanh(o)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

from ...checkpoint.linear import Matrix
from .base import W1, W2, HeadSizes, HeadTensors

_JOINT = "markov_head.joint_proj"


@dataclass(frozen=True)
class RNNHead:
    """DeepSpec's recurrent variant of the Markov head.

    [g, c, o] = split(Wj [s; e; h] + b) and s = sigmoid(g) s + (1 - sigmoid(g)) tanh(c), where e is
    W1[x_{k-1}], h is the hidden row, and the state s is 0 at the start of every block.

    Attributes:
        w1: embedding table `[vocabulary, rank]`.
        w2: output matrix `[output, rank]`.
        joint: Wj, `[3 rank, 2 rank + hidden]`.
        joint_bias: b, `[3 rank]`.
    """

    NAME: ClassVar[str] = "rnn"

    w1: Matrix
    w2: Matrix
    joint: Matrix
    joint_bias: mx.array

    @staticmethod
    def matrices(sizes: HeadSizes) -> dict[str, tuple[int, int]]:
        """See `SequentialHead.matrices`."""
        return {_JOINT: (3 * sizes.rank, 2 * sizes.rank + sizes.hidden)}

    @staticmethod
    def vectors(sizes: HeadSizes) -> dict[str, tuple[int]]:
        """See `SequentialHead.vectors`."""
        return {f"{_JOINT}.bias": (3 * sizes.rank,)}

    @classmethod
    def load(cls, tensors: HeadTensors) -> RNNHead:
        """See `SequentialHead.load`."""
        joint, bias = tensors.matrix(_JOINT), tensors.vector(f"{_JOINT}.bias")
        return cls(tensors.matrix(W1), tensors.matrix(W2), joint, bias)

    def vector(
        self, previous: mx.array, hidden: mx.array, state: mx.array | None
    ) -> tuple[mx.array, mx.array, mx.array]:
        """See `Correction.vector`; the state is s, `[n, rank]`."""
        embedding = self.w1.rows(previous)
        if state is None:
            state = mx.zeros_like(embedding)
        joined = mx.concatenate([state, embedding, hidden], axis=-1)
        gate, candidate, output = mx.split(self.joint.add_to(self.joint_bias, joined), 3, axis=-1)
        keep = mx.sigmoid(gate)
        state = keep * state + (1 - keep) * mx.tanh(candidate)
        return mx.tanh(output), embedding, state
