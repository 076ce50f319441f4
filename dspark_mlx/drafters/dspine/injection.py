"""DSpine's injection: what a row of the block hears from the row before, after each layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import mlx.core as mx

from ...checkpoint.linear import Matrix
from ..tensors import DrafterTensors

CODES = "transfer_codes"
MESSAGE, RECEIVER, PREDECESSOR = SHARED = (
    "injection.message",
    "injection.receiver_gate",
    "injection.predecessor_gate",
)
BIAS = "injection.bias"


def readout_name(layer: int) -> str:
    """Name of the matrix that makes a layer's rows codes."""
    return f"injection.readouts.{layer}"


def write_name(layer: int) -> str:
    """Name of the matrix that writes messages into a layer's rows."""
    return f"injection.writes.{layer}"


@dataclass(frozen=True)
class Injection:
    """The weights of the injection, shared by all layers but for readouts and writes.

    A row's code is f(x) = sqrt(R) * unit(readout x), a token's is sqrt(R) times its stored one. A
    row x that follows the code p becomes x + |x| / sqrt(H) * write(g * (message p)), where
    g = sigmoid(receiver f(x) + predecessor p + bias).

    Attributes:
        readouts, writes: by layer, `[R, hidden]` and `[hidden, M]`.
        message, receiver, predecessor: `[M, R]`.
        bias: `[M]`.
        codes: of the tokens, of length 1, `[vocabulary, R]`.
    """

    readouts: tuple[Matrix, ...]
    writes: tuple[Matrix, ...]
    message: Matrix
    receiver: Matrix
    predecessor: Matrix
    bias: mx.array
    codes: Matrix

    @classmethod
    def load(cls, layers: int, tensors: DrafterTensors) -> Self:
        """The injection of a canonical folder; not evaluated."""
        return cls(
            readouts=tuple(tensors.matrix(readout_name(i)) for i in range(layers)),
            writes=tuple(tensors.matrix(write_name(i)) for i in range(layers)),
            message=tensors.matrix(MESSAGE),
            receiver=tensors.matrix(RECEIVER),
            predecessor=tensors.matrix(PREDECESSOR),
            bias=tensors.vector(BIAS),
            codes=tensors.matrix(CODES),
        )

    def of_tokens(self, tokens: mx.array, dtype: mx.Dtype) -> mx.array:
        """The codes of tokens, int `[...]` to `[..., R]`."""
        codes = self.codes.rows(tokens).astype(dtype)
        return codes * codes.shape[-1] ** 0.5

    def of_rows(self, layer: int, x: mx.array) -> mx.array:
        """The codes of rows after a layer, `[..., hidden]` to `[..., R]`."""
        raw = self.readouts[layer](x).astype(mx.float32)
        # A norm over R numbers whose mean square becomes 1: sqrt(R) times a unit vector.
        return mx.fast.rms_norm(raw, None, 1e-12).astype(x.dtype)

    def after(self, layer: int, x: mx.array, codes: mx.array, before: mx.array) -> mx.array:
        """Rows that heard from those before.

        Args:
            layer: the layer that gave the rows.
            x: rows, `[..., hidden]`.
            codes: their own codes, `[..., R]`.
            before: codes of what is before each, `[..., R]`.
        """
        gate = mx.sigmoid(self.receiver(codes) + self.predecessor(before) + self.bias)
        delta = self.writes[layer](gate * self.message(before))
        size = x.astype(mx.float32).square().mean(axis=-1, keepdims=True).sqrt()
        return x + size.astype(x.dtype) * delta

    def along(self, layer: int, x: mx.array, first: mx.array) -> mx.array:
        """Blocks `[n, rows, hidden]`, whose row 1 follows `first` `[n, 1, R]`; row 0 hears nothing.

        What a later row hears is the code of the row before, as the layer gave it.
        """
        codes = self.of_rows(layer, x)
        before = mx.concatenate([first, codes[:, 1:-1]], axis=1)
        return mx.concatenate([x[:, :1], self.after(layer, x[:, 1:], codes[:, 1:], before)], axis=1)
