"""Reads a drafter checkpoint as it was published: its config and its tensors.

A folder has config.json and safetensors. For a GGUF file, the metadata is the config, and matrices
are read one at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import mlx.core as mx

from ..checkpoint.number_ranges import check_numbers
from ..checkpoint.safetensors import read_tensors
from ..system.files import read_json
from .gguf.blocks import read_values
from .gguf.header import Judge, read_header
from .gguf.matrix import SCALE, WEIGHT, GgufMatrix, matrix_factors
from .mlx_quantized import MlxMatrix, grouped

# llama.cpp leaves this bias out where it is zero.
_BIAS, _BIASED = "conf_proj.bias", "conf_proj.weight"
# A GGUF file has the matrices of all experts as one tensor; a head's are read one by one.
_EXPERTS = f"_exps{WEIGHT}"

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
    factors = matrix_factors(header)
    tensors: dict[str, Tensor] = {
        name: GgufMatrix(source, row, factors.get(name, 1.0))
        if len(row.shape) > 1
        else read_values(source, row)
        for name, row in header.tensors.items()
        if not (name.endswith(SCALE) and name.removesuffix(SCALE) + WEIGHT in factors)
    }
    for name in [name for name in tensors if name.endswith(_EXPERTS)]:
        stacked = tensors[name]
        if isinstance(stacked, GgufMatrix) and len(stacked.shape) == 3:
            del tensors[name]
            stem = name.removesuffix(WEIGHT)
            tensors |= {f"{stem}.{i}{WEIGHT}": each for i, each in enumerate(stacked.experts())}
    if _BIASED in tensors:
        tensors.setdefault(_BIAS, mx.zeros((1,)))
    return header.metadata, tensors
