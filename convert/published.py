"""Reads a drafter checkpoint as it was published: its config and its tensors.

A folder has config.json and safetensors. For a GGUF file, the metadata is the config, and matrices
are read one at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import mlx.core as mx

from ..checkpoint.number_ranges import check_numbers
from ..checkpoint.quantization import AFFINE
from ..checkpoint.safetensors import read_tensors
from ..system.files import read_json
from .gguf.blocks import AFFINE_BITS, GROUP_SIZE, read_affine, read_values
from .gguf.header import Judge, TensorInfo, read_header
from .mlx_quantized import MlxMatrix, grouped

# llama.cpp leaves this bias out where it is zero.
_BIAS, _BIASED = "conf_proj.bias", "conf_proj.weight"


@dataclass(frozen=True)
class GgufMatrix:
    """A matrix of a GGUF file, not read yet.

    Attributes:
        path: the file.
        row: the matrix's row in the file's tensor table.
    """

    path: Path
    row: TensorInfo

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
    def bits(self) -> int:
        """Bits per weight where MLX's affine mode can hold the matrix as it is; else 0."""
        return AFFINE_BITS.get(self.row.type, 0)

    @property
    def mode(self) -> str:
        """MLX's name of that quantisation."""
        return AFFINE

    @property
    def scale_type(self) -> mx.Dtype:
        """Type of the scales in MLX's affine mode."""
        return mx.float16

    @property
    def group_size(self) -> int:
        """Weights that share a scale in MLX's affine mode."""
        return GROUP_SIZE

    def values(self) -> mx.array:
        """The unpacked values, see `read_values`."""
        return read_values(self.path, self.row)

    def packed(self) -> tuple[mx.array, mx.array, mx.array]:
        """Packed words, scales and biases, see `read_affine`."""
        return read_affine(self.path, self.row)


StoredMatrix: TypeAlias = GgufMatrix | MlxMatrix
Tensor: TypeAlias = mx.array | StoredMatrix
"""A tensor of a published checkpoint; a matrix may not be read yet."""


def read_published(source: Path, judge: Judge) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors of a checkpoint; matrices are not read yet.

    Args:
        source: a folder, or a .gguf file.
        judge: called with a GGUF file's metadata and shapes before its types are looked at.

    Raises:
        InputError: the checkpoint is missing or damaged, or `judge` refuses it.
    """
    if source.is_dir():
        config = read_json(source / "config.json")
        check_numbers(source / "config.json", config)
        return config, dict(grouped(config, read_tensors(source), source))
    header = read_header(source, judge)
    check_numbers(source, header.metadata)
    tensors: dict[str, Tensor] = {
        name: GgufMatrix(source, row) if len(row.shape) > 1 else read_values(source, row)
        for name, row in header.tensors.items()
    }
    if _BIASED in tensors:
        tensors.setdefault(_BIAS, mx.zeros((1,)))
    return header.metadata, tensors
