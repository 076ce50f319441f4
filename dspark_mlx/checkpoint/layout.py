"""The tensors of a canonical drafter folder: their names, their shapes, and the check of them all.

The names are DeepSpec's; drafters with sandwich norms have those of DeepSpec's Gemma4 drafters. No
tensor may be missing, left over, of another shape, or not finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import mlx.core as mx
import numpy as np

from ..errors import InputError
from .base_config import CanonicalConfig
from .block_floats import are_finite
from .number_ranges import all_finite
from .quantization import AFFINE

Tensors = Mapping[str, mx.array]


class Shaped(Protocol):
    """A tensor, read or not read yet."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor; for a packed matrix, of its unpacked values."""
        ...

    @property
    def dtype(self) -> mx.Dtype:
        """Type of the tensor; for a packed matrix, of its unpacked values."""
        ...


def stored_shapes(config: CanonicalConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every stored tensor; a quantised matrix has scales, and maybe biases."""
    shapes: dict[str, tuple[int, ...]] = {**config.vector_shapes(), **config.id_shapes()}
    for name, (*rows, columns) in config.matrix_shapes().items():
        quantized = config.quantization.of(name) if config.quantization else None
        if quantized is None:
            shapes[f"{name}.weight"] = (*rows, columns)
            continue
        bits, group_size = quantized
        shapes[f"{name}.weight"] = (*rows, columns * bits // 32)
        shapes[f"{name}.scales"] = (*rows, columns // group_size)
        if _mode(config, name) == AFFINE:
            shapes[f"{name}.biases"] = shapes[f"{name}.scales"]
    return shapes


def check_tensors(config: CanonicalConfig, tensors: Tensors, where: Path | str) -> None:
    """Refuse a set of tensors that is not exactly the one of the configuration.

    Raises:
        InputError: a tensor is missing, left over, of another shape or type, or not finite.
    """
    check_headers(config, tensors, where)
    for name, tensor in tensors.items():
        check_values(config, name, tensor, where)


def check_headers(
    config: CanonicalConfig, tensors: Mapping[str, Shaped], where: Path | str
) -> None:
    """Refuse what `check_tensors` refuses, values excepted; no tensor is read.

    Raises:
        InputError: a tensor is missing, left over, or of another shape or type.
    """
    if config.depth > len(tensors):
        # Checked first: a wrong depth could mean millions of names.
        raise InputError(where, f"{len(tensors)} tensors", f"those of {config.depth} layers")
    expected = stored_shapes(config)
    if missing := sorted(set(expected) - set(tensors)):
        raise InputError(where, f"no tensor {', '.join(missing)}", "every tensor of the drafter")
    if extra := sorted(set(tensors) - set(expected)):
        raise InputError(where, f"unknown tensors {', '.join(extra)}", "the drafter's tensors only")
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise InputError(f"{where}: {name}", f"shape {list(tensor.shape)}", f"{list(shape)}")
        wanted = _integers(config, name, expected)
        if wanted is not None and tensor.dtype != wanted:
            raise InputError(f"{where}: {name}", f"type {tensor.dtype}", f"{wanted}")
        if wanted is None and not mx.issubdtype(tensor.dtype, mx.floating):
            raise InputError(f"{where}: {name}", f"type {tensor.dtype}", "a floating type")


def _mode(config: CanonicalConfig, name: str) -> str:
    return config.quantization.mode_of(name) if config.quantization else AFFINE


def _integers(
    config: CanonicalConfig, name: str, expected: Mapping[str, tuple[int, ...]]
) -> mx.Dtype | None:
    """The type of a tensor of integers; None where it holds floating numbers."""
    base, _, part = name.rpartition(".")
    if name in config.id_shapes():
        return mx.int32
    if part == "weight" and f"{base}.scales" in expected:
        return mx.uint32
    return mx.uint8 if part == "scales" and _mode(config, base) != AFFINE else None


def check_values(config: CanonicalConfig, name: str, tensor: mx.array, where: Path | str) -> None:
    """Refuse a tensor with impossible values; packed integers are not looked at.

    Raises:
        InputError: a value is NaN or infinite, or token ids are repeated or not in the vocabulary.
    """
    mode = _mode(config, name.removesuffix(".scales"))
    bytes_ = mode != AFFINE and name.endswith(".scales")
    if name in config.id_shapes():
        _check_ids(tensor, config.vocab_size, f"{where}: {name}")
    elif not (are_finite(mode, tensor) if bytes_ else all_finite(tensor)):
        raise InputError(f"{where}: {name}", "NaN or infinite values", "finite values")


def _check_ids(ids: mx.array, vocab_size: int, where: str) -> None:
    values = np.unique(np.array(ids))
    if values.size != ids.size or values[0] < 0 or values[-1] >= vocab_size:
        found = f"{values.size} ids from {values[0]} to {values[-1]}"
        raise InputError(where, found, f"{ids.size} different ids from 0 to {vocab_size - 1}")
