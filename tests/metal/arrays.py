"""MLX arrays as the bytes that a kernel sees; a quantized product with its exact result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import mlx.core as mx
import numpy as np

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
# Largest error, relative to the largest result, of one rounding to the type (two for a sum of
# parts).
TOLERANCE = {"float32": 1e-5, "float16": 2**-10, "bfloat16": 2**-8}
STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


def host(array: mx.array) -> np.ndarray:
    """An MLX array for the emulator; bfloat16 as its bits."""
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def device(array: np.ndarray, dtype: mx.Dtype) -> mx.array:
    """What `host` gave, or a kernel wrote, as an MLX array."""
    return mx.array(array).view(dtype) if dtype == mx.bfloat16 else mx.array(array)


def values(array: np.ndarray) -> np.ndarray:
    """A kernel's numbers as float64; 16-bit integers are bfloat16's bits."""
    if array.dtype != np.uint16:
        return array.astype(np.float64)
    return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def bits(array: np.ndarray) -> np.ndarray:
    """The same memory as integers: equal bits, not equal numbers."""
    return array.view({2: np.uint16, 4: np.uint32}[array.itemsize])


def differing(a: np.ndarray, b: np.ndarray) -> int:
    """How many elements differ in any bit."""
    assert a.shape == b.shape
    return int((bits(a) != bits(b)).sum())


def unpacked(weight: np.ndarray, bit_count: int) -> np.ndarray:
    """Quantized values `[rows, columns]` of packed words `[rows, columns * bits / 32]`."""
    per_word = 32 // bit_count
    shifts = np.arange(per_word, dtype=np.uint32) * bit_count
    parts = (weight[..., None] >> shifts) & ((1 << bit_count) - 1)
    return parts.reshape(*weight.shape[:-1], -1)


@dataclass(frozen=True)
class QuantizedProduct:
    """A random product `x W.T` of M rows with affine weights of N rows and K columns."""

    rows: int
    outputs: int
    inputs: int
    bits: int = 4
    dtype: str = "float32"
    group_size: int = 64
    seed: int = 0

    @classmethod
    def of(cls, arrays: dict[str, mx.array], bits: int, group_size: int) -> QuantizedProduct:
        """The product of float32 arrays that are there: x, weight, scales and biases."""
        outputs, (rows, inputs) = len(arrays["weight"]), arrays["x"].shape
        return cls(rows, outputs, inputs, bits, "float32", group_size)._with(arrays)

    def _with(self, arrays: dict[str, mx.array]) -> QuantizedProduct:
        self.__dict__["arrays"] = arrays  # where cached_property keeps it
        return self

    @cached_property
    def arrays(self) -> dict[str, mx.array]:
        """x, weight, scales and biases, as MLX has them."""
        keys = mx.random.split(mx.random.key(self.seed))
        shape = (self.outputs, self.inputs)
        weight = (mx.random.normal(shape, key=keys[0]) * 0.05).astype(DTYPES[self.dtype])
        x = mx.random.normal((self.rows, self.inputs), key=keys[1]) * 2
        packed, scales, biases = mx.quantize(weight, group_size=self.group_size, bits=self.bits)
        x = x.astype(DTYPES[self.dtype])
        return {"x": x, "weight": packed, "scales": scales, "biases": biases}

    @cached_property
    def host(self) -> dict[str, np.ndarray]:
        """The same as a kernel sees them."""
        return {name: host(array) for name, array in self.arrays.items()}

    @cached_property
    def reference(self) -> np.ndarray:
        """The product in float64."""
        h = self.host
        weight = unpacked(h["weight"], self.bits) * np.repeat(
            values(h["scales"]), self.group_size, 1
        ) + np.repeat(values(h["biases"]), self.group_size, 1)
        return values(h["x"]) @ weight.T

    def part(self, start: int, stop: int) -> QuantizedProduct:
        """The same product for some of the rows."""
        x = self.arrays["x"][start:stop]
        return replace(self, rows=stop - start)._with({**self.arrays, "x": x})

    def blank(self, rows: int | None = None) -> np.ndarray:
        """An output that is still to be written."""
        return np.zeros((rows or self.rows, self.outputs), STORED[self.dtype])

    def error(self, y: np.ndarray) -> float:
        """Largest error relative to the largest result."""
        return float(np.abs(values(y) - self.reference).max() / np.abs(self.reference).max())
