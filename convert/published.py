"""A drafter checkpoint as it was published: its config and its tensors, of either kind of file.

A folder has config.json and safetensors. A GGUF file has its metadata for a config, and matrices
that are read one at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import mlx.core as mx

from ..checkpoint.number_ranges import check_numbers
from ..checkpoint.safetensors import read_tensors
from ..system.files import read_json
from .gguf.blocks import AFFINE_BITS, GROUP_SIZE, read_affine, read_values
from .gguf.header import Judge, TensorInfo, read_header
from .mlx_quantized import MlxMatrix, grouped

# llama.cpp leaves this bias out where there is none.
_BIAS, _BIASED = "conf_proj.bias", "conf_proj.weight"


@dataclass(frozen=True)
class GgufMatrix:
    """A matrix of a GGUF file, not read yet.

    Attributes:
        path: the file.
        row: of its tensor table.
    """

    path: Path
    row: TensorInfo

    @property
    def shape(self) -> tuple[int, ...]:
        """`[out, in]`, unpacked."""
        return self.row.shape

    @property
    def dtype(self) -> mx.Dtype:
        """Of its values."""
        plain = {"F16": mx.float16, "BF16": mx.bfloat16, "I32": mx.int32, "I64": mx.int64}
        return plain.get(self.row.type, mx.float32)

    @property
    def bits(self) -> int:
        """Bits a weight where MLX's affine quantisation holds it as it is; else 0."""
        return AFFINE_BITS.get(self.row.type, 0)

    @property
    def scale_type(self) -> mx.Dtype:
        """Of its scales there."""
        return mx.float16

    @property
    def group_size(self) -> int:
        """Weights that share a scale there."""
        return GROUP_SIZE

    def values(self) -> mx.array:
        """Its values, see `read_values`."""
        return read_values(self.path, self.row)

    def packed(self) -> tuple[mx.array, mx.array, mx.array]:
        """Its words, scales and biases as they are, see `read_affine`."""
        return read_affine(self.path, self.row)


StoredMatrix: TypeAlias = GgufMatrix | MlxMatrix
Tensor: TypeAlias = mx.array | StoredMatrix
"""What has a shape and a type before it is read."""


def read_published(source: Path, judge: Judge) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a checkpoint; large ones are not read yet.

    Args:
        source: a folder, or a .gguf file.
        judge: called with a GGUF file's metadata and shapes before its types are looked at.

    Raises:
        InputError: it is missing or damaged, or refused by `judge`.
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
