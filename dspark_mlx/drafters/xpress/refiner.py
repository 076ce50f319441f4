"""XPress' refiner: corrects a slot's logits by its row, the block's mean row and earlier tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import mlx.core as mx
from mlx import nn

from ...checkpoint.linear import Matrix
from ..tensors import DrafterTensors

EMBEDDING, READOUT = "refiner_head.token_embed", "refiner_head.readout"
ROW, MEAN, JOINT = "refiner_head.down_h", "refiner_head.down_g", "refiner_head.in_proj"
GATE, UP, DOWN = "refiner_head.mlp_gate", "refiner_head.mlp_up", "refiner_head.mlp_down"
MIXING = "refiner_head.mix_l"


@dataclass(frozen=True)
class Refiner:
    """Makes the vector c of each row of a block, see `heads.base.Correction`.

    a_k = J [R h_k; M mean(h); E x_k], where x_k is the token before what row k predicts;
    c_k = a_k + sum over j <= k of L[k, j] * a_j, and c_k + D (silu(G c_k) * U c_k) corrects the
    logits. Published engines find the tokens by a few passes over the whole block, each with the
    tokens of the pass before. Choosing them from left to right gives what these passes come to,
    and makes each slot's distribution that of its token given the tokens before.

    Attributes:
        embedding: E, `[vocabulary, rank]`.
        row: R, `[rank, hidden]`.
        mean: M, `[rank, hidden]`.
        joint: J, `[rank, 3 rank]`.
        mixing: L, `[rows, rows, rank]`; a row reads none after it.
        gate_up: G and U, `[2 size, rank]`.
        down: D, `[rank, size]`.
        w2: maps the vector to the correction, `[output, rank]`.
    """

    embedding: Matrix
    row: Matrix
    mean: Matrix
    joint: Matrix
    mixing: mx.array
    gate_up: Matrix
    down: Matrix
    w2: Matrix

    @classmethod
    def load(cls, tensors: DrafterTensors) -> Self:
        """The refiner of a canonical folder; not evaluated."""
        embedding, row, mean, joint, down, w2 = (
            tensors.matrix(name) for name in (EMBEDDING, ROW, MEAN, JOINT, DOWN, READOUT)
        )
        # Stored by channel, and whole: only the lower triangle was trained.
        mixing = mx.tril(tensors.vector(MIXING)).transpose(1, 2, 0)
        return cls(embedding, row, mean, joint, mixing, tensors.fused(GATE, UP), down, w2)

    def inputs(self, hidden: mx.array) -> mx.array:
        """What `vector` reads of a block's rows `[rows, hidden]`, all of them: `[rows, 2 rank]`."""
        mean = self.mean(hidden.mean(axis=0, keepdims=True))
        return mx.concatenate([self.row(hidden), mx.repeat(mean, hidden.shape[0], axis=0)], axis=-1)

    def vector(
        self, previous: mx.array, hidden: mx.array, state: mx.array | None
    ) -> tuple[mx.array, mx.array, mx.array]:
        """See `Correction.vector`: `hidden` is a row of `inputs`, the state is the a_j so far."""
        embedding = self.embedding.rows(previous)
        own = self.joint(mx.concatenate([hidden, embedding], axis=-1))
        state = own[:, None] if state is None else mx.concatenate([state, own[:, None]], axis=1)
        slot = state.shape[1] - 1
        mixed = own + (self.mixing[slot, : slot + 1] * state).sum(axis=1)
        gate, up = mx.split(self.gate_up(mixed), 2, axis=-1)
        return mixed + self.down(nn.silu(gate) * up), embedding, state
