"""The RNN head: a gated recurrent state along the block, bias = W2 tanh(o)."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from ...checkpoint.linear import Matrix


@dataclass(frozen=True)
class RNNHead:
    """The recurrent variant of DeepSpec's Markov head.

    [g, c, o] = split(Wj [s; e; h] + b); s = sigmoid(g) s + (1 - sigmoid(g)) tanh(c); the state is 0
    at the start of every block.

    Attributes:
        w1: embedding table `[vocabulary, rank]`.
        w2: map `[vocabulary, rank]` from the rank to the logits.
        joint: Wj, `[3 rank, 2 rank + hidden]`.
        joint_bias: b, `[3 rank]`.
    """

    w1: Matrix
    w2: Matrix
    joint: Matrix
    joint_bias: mx.array

    def vector(
        self, previous: mx.array, hidden: mx.array, state: mx.array | None
    ) -> tuple[mx.array, mx.array, mx.array]:
        """See `SequentialHead.vector`; the state is `[n, rank]`."""
        embedding = self.w1.rows(previous)
        if state is None:
            state = mx.zeros_like(embedding)
        joined = mx.concatenate([state, embedding, hidden], axis=-1)
        gate, candidate, output = mx.split(self.joint.add_to(self.joint_bias, joined), 3, axis=-1)
        keep = mx.sigmoid(gate)
        state = keep * state + (1 - keep) * mx.tanh(candidate)
        return mx.tanh(output), embedding, state
