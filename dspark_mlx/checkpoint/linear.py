"""A weight matrix, plain or quantised, with the operations that drafters need of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import mlx.core as mx

from .quantization import AFFINE

_ArrayMap: TypeAlias = Callable[[mx.array], mx.array]
_ArrayJoin: TypeAlias = Callable[[list[mx.array]], mx.array]


@dataclass(frozen=True)
class Matrix:
    """A linear map `[out, in]`, or a stack of them `[n, out, in]`.

    A slice of a stack shares the stack's memory, so a fused product and the per-layer products can
    use the same weights without a copy.

    Attributes:
        weight: the matrix, or the packed integers of MLX's quantisation.
        scales, biases: one number for each group of weights along `in`; None for a plain matrix,
            and biases for a mode that has none.
        bits: bits per weight; 0 for a plain matrix.
        group_size: weights that share a scale and a bias; 0 for a plain matrix.
        mode: MLX's name of the quantisation.
    """

    weight: mx.array
    scales: mx.array | None = None
    biases: mx.array | None = None
    bits: int = 0
    group_size: int = 0
    mode: str = AFFINE
    _transposed: mx.array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # The view is made once; otherwise every product would make it again.
        object.__setattr__(self, "_transposed", self.weight.swapaxes(-1, -2))

    @property
    def quantized(self) -> bool:
        """True for a quantised matrix."""
        return self.scales is not None

    @property
    def out_features(self) -> int:
        """Rows of the matrix."""
        return self.weight.shape[-2]

    def __call__(self, x: mx.array) -> mx.array:
        """The product `x @ self.T`: `[rows, in]` to `[rows, out]`; a stack: `[n, rows, out]`."""
        if self.scales is None:
            return x @ self._transposed
        return mx.quantized_matmul(
            x if self.weight.ndim == 2 else x[None],
            self.weight,
            self.scales,
            self.biases,
            transpose=True,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )

    def add_to(self, base: mx.array, x: mx.array) -> mx.array:
        """The sum `base + x @ self.T`, in one kernel where the matrix is plain."""
        if self.scales is None:
            return mx.addmm(base, x, self._transposed)
        return base + self(x)

    def rows(self, indices: mx.array) -> mx.array:
        """The rows at int `[n]`, dequantised, `[n, in]`, as an embedding table gives them."""
        if self.scales is None:
            return self.weight[indices]
        biases = None if self.biases is None else self.biases[indices]
        return mx.dequantize(
            self.weight[indices],
            self.scales[indices],
            biases,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )

    def dequantized(self, dtype: mx.Dtype) -> Matrix:
        """A plain matrix of type `dtype` with the same values, dequantised in float32."""
        if self.scales is None:
            return Matrix(self.weight.astype(dtype))
        exact = self.astype(mx.float32)
        assert exact.scales is not None
        weight = mx.dequantize(
            exact.weight,
            exact.scales,
            exact.biases,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )
        return Matrix(weight.astype(dtype))

    def astype(self, dtype: mx.Dtype) -> Matrix:
        """The matrix with its floating arrays cast: the weights, or the scales and biases."""
        if self.scales is None:
            return Matrix(self.weight.astype(dtype))
        if self.mode != AFFINE:
            return self
        biases = None if self.biases is None else self.biases.astype(dtype)
        return self._with(self.weight, self.scales.astype(dtype), biases)

    def slice(self, start: int, stop: int) -> Matrix:
        """Output rows `start:stop` as a view."""
        return self._map(lambda a: a[..., start:stop, :])

    def take(self, indices: mx.array) -> Matrix:
        """A matrix of the output rows at int `[n]`, quantised as this one is."""
        return self._map(lambda a: a[indices])

    def __getitem__(self, index: int) -> Matrix:
        """One matrix of a stack, as a view."""
        return self._map(lambda a: a[index])

    def _map(self, change: _ArrayMap) -> Matrix:
        scales = None if self.scales is None else change(self.scales)
        biases = None if self.biases is None else change(self.biases)
        return self._with(change(self.weight), scales, biases)

    def _with(self, weight: mx.array, scales: mx.array | None, biases: mx.array | None) -> Matrix:
        return Matrix(weight, scales, biases, self.bits, self.group_size, self.mode)

    @staticmethod
    def concatenate(parts: Sequence[Matrix]) -> Matrix:
        """One matrix of the output rows of all parts, which must be quantised alike."""
        return _join(parts, lambda arrays: mx.concatenate(arrays, axis=0))

    @staticmethod
    def stack(parts: Sequence[Matrix]) -> Matrix:
        """A stack `[n, out, in]` of equally shaped matrices quantised alike."""
        return _join(parts, mx.stack)


def alike(parts: Sequence[Matrix]) -> bool:
    """True when the parts are all plain, or all quantised in the same way."""
    return len({(p.bits, p.group_size, p.mode) for p in parts}) == 1


def arrays_of(value: object) -> list[mx.array]:
    """Every array inside nested dataclasses, tuples, lists and dicts; MLX's modules are dicts."""
    if isinstance(value, mx.array):
        return [value]
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [array for item in value for array in arrays_of(item)]
    return []


def _join(parts: Sequence[Matrix], join: _ArrayJoin) -> Matrix:
    first = parts[0]
    if not first.quantized:
        return Matrix(join([p.weight for p in parts]))
    weight = join([p.weight for p in parts])
    scales = join([p.scales for p in parts if p.scales is not None])
    biased = [p.biases for p in parts if p.biases is not None]
    biases = join(biased) if biased else None
    return Matrix(weight, scales, biases, first.bits, first.group_size, first.mode)
