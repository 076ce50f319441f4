"""One matrix of a GGUF file, read when it is needed, as values or as MLX packs it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np

from ...checkpoint.quantization import AFFINE
from .blocks import DECODED, PACKED, read_packed, read_values
from .header import Header, TensorInfo

WEIGHT, SCALE = ".weight", ".scale"


@dataclass(frozen=True)
class GgufMatrix:
    """A matrix of a GGUF file, not read yet.

    Attributes:
        path: the file.
        row: the matrix's row in the file's tensor table.
        factor: of all values; see `matrix_factors`.
    """

    path: Path
    row: TensorInfo
    factor: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the unpacked matrix, `[out, in]`."""
        return self.row.shape

    @property
    def dtype(self) -> mx.Dtype:
        """Type of the unpacked values."""
        plain = {"F16": mx.float16, "BF16": mx.bfloat16, "I32": mx.int32, "I64": mx.int64}
        return plain.get(self.row.type, mx.float32)

    @property
    def quantized(self) -> bool:
        """Whether the file's type is not a plain one."""
        return self.row.type in PACKED or self.row.type in DECODED

    @property
    def bits(self) -> int:
        """Bits per weight where one of MLX's modes can hold the matrix as it is; else 0."""
        return self._form[0]

    @property
    def mode(self) -> str:
        """MLX's name of that quantisation."""
        return self._form[2]

    @property
    def scale_type(self) -> mx.Dtype:
        """Type of the scales of a matrix that is quantised anew."""
        return mx.float16 if self.quantized else self.dtype

    @property
    def group_size(self) -> int:
        """Weights that share a scale in that quantisation."""
        return self._form[1]

    def values(self) -> mx.array:
        """The unpacked values, see `read_values`; a factor rounds them once."""
        values = read_values(self.path, self.row)
        return values if self.factor == 1 else values * self.factor

    def packed(self) -> tuple[mx.array, ...]:
        """Packed words, scales and biases, see `read_packed`."""
        return read_packed(self.path, self.row)

    def experts(self) -> list[GgufMatrix]:
        """The matrices of a tensor `[experts, out, in]`, which follow one another in the file."""
        count, *shape = self.row.shape
        size = self.row.size // count
        return [
            replace(self, row=replace(self.row, shape=tuple(shape), start=start, size=size))
            for start in range(self.row.start, self.row.start + count * size, size)
        ]

    @property
    def _form(self) -> tuple[int, int, str]:
        packed = PACKED.get(self.row.type) if self.factor == 1 else None
        return packed or (0, 0, AFFINE)


def matrix_factors(header: Header) -> dict[str, float]:
    """The factor of each NVFP4 matrix that has one, by the matrix's name.

    It is stored beside the matrix as `.scale`, one number. MLX has no place for it: where it is not
    1, the matrix is decoded.
    """
    factors: dict[str, float] = {}
    for name, row in header.tensors.items():
        matrix = header.tensors.get(name.removesuffix(SCALE) + WEIGHT)
        named = name.endswith(SCALE) and matrix is not None and matrix.type == "NVFP4"
        if named and row.type == "F32" and row.shape == (1,):
            factors[name.removesuffix(SCALE) + WEIGHT] = np.array(read_values(header.path, row))[0]
    return factors
