"""Reads matrices that MLX's `nn.quantize` packed, in a drafter of any published packaging.

Such a folder has `scales` (and for the affine mode `biases`) beside a packed `weight`. The entry
"quantization" of its config has group size, bits and mode, and exceptions for single modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint.base_config import FORMAT
from ..checkpoint.block_floats import GROUP, folded, is_fp4, is_repackable, repacked
from ..checkpoint.quantization import AFFINE, BYTE_SCALES, check_quantization
from ..errors import InputError


@dataclass(frozen=True)
class MlxMatrix:
    """A matrix, or a stack of them, that MLX packed.

    Attributes:
        parts: packed words (uint32), scales, and for the affine mode biases.
        columns: columns of the unpacked matrix.
        mode: mode of `mlx.core.quantize`.
        bits: bits per weight.
        group_size: weights that share a scale.
    """

    parts: tuple[mx.array, ...]
    columns: int
    mode: str
    bits: int
    group_size: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the unpacked matrix, `[out, in]`, or of the stack."""
        return (*self.parts[0].shape[:-1], self.columns)

    @property
    def dtype(self) -> mx.Dtype:
        """Type of the unpacked values."""
        return self.scale_type if self.mode == AFFINE else mx.bfloat16

    @property
    def scale_type(self) -> mx.Dtype:
        """Type of the scales."""
        return self.parts[1].dtype

    def values(self) -> mx.array:
        """The unpacked values: float32 for the affine mode, else bfloat16, which is exact."""
        group_size, bits = self.group_size, self.bits
        words, *rest = self.parts
        if self.mode == AFFINE:
            scales, biases = (part.astype(mx.float32) for part in rest)
            return mx.dequantize(words, scales, biases, group_size=group_size, bits=bits)
        scales, mode = rest[0], self.mode
        return mx.dequantize(
            words, scales, group_size=group_size, bits=bits, mode=mode, dtype=mx.bfloat16
        )

    def packed(self) -> tuple[mx.array, ...]:
        """Packed words, scales and biases, as they are stored."""
        return self.parts


def grouped(
    config: Mapping[str, Any], tensors: Mapping[str, mx.array], where: Path
) -> dict[str, mx.array | MlxMatrix]:
    """The tensors of a folder, with the parts of each packed matrix joined.

    Matrices in DeepSeek's FP8 and FP4, and in NVIDIA's NVFP4, are packed in MLX's form of the same
    values; those of NVFP4 are decoded where MLX has none.

    Args:
        config: content of config.json.
        tensors: the stored tensors by name.
        where: the folder, for errors.

    Raises:
        InputError: the config does not say how a matrix is packed, or its parts do not fit.
    """
    if config.get("format") == FORMAT:
        return dict(tensors)
    found: dict[str, mx.array | MlxMatrix] = {}
    tensors = _without_blocks(tensors, found, where)
    tensors = _without_nvfp4(tensors, found, where)
    packed = {
        name.removesuffix(".scales")
        for name in tensors
        if name.endswith(".scales") and f"{name.removesuffix('.scales')}.weight" in tensors
    }
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if module not in packed or part not in ("weight", "scales", "biases"):
            found[name] = tensor
        elif part == "weight":
            found[name] = _matrix(module, config, tensors, where)
    return found


def _without_blocks(
    tensors: Mapping[str, mx.array], found: dict[str, mx.array | MlxMatrix], where: Path
) -> dict[str, mx.array]:
    """The tensors but for FP8 and FP4 matrices, which go to `found`; see `block_floats`."""
    rest = dict(tensors)
    for name in tensors:
        base = name.removesuffix(".scale")
        weight = tensors.get(f"{base}.weight")
        if base == name or weight is None or weight.dtype not in (mx.int8, mx.uint8):
            continue
        scale = rest.pop(name)
        if not is_repackable(weight, scale):
            shapes = f"{scale.dtype} {list(scale.shape)} for {weight.dtype} {list(weight.shape)}"
            wanted = "uint8, one for each 32 weights of FP4 or each block of FP8"
            raise InputError(f"{where}: {name}", shapes.replace("mlx.core.", ""), wanted)
        del rest[f"{base}.weight"]
        mode = "mxfp4" if is_fp4(weight) else "mxfp8"
        parts = repacked(weight, scale)
        columns = parts[1].shape[1] * GROUP
        found[f"{base}.weight"] = MlxMatrix(parts, columns, mode, *BYTE_SCALES[mode])
    return rest


def _without_nvfp4(
    tensors: Mapping[str, mx.array], found: dict[str, mx.array | MlxMatrix], where: Path
) -> dict[str, mx.array]:
    """The tensors but for NVFP4 matrices as ModelOpt stores them, which go to `found`.

    Such a matrix has a scale of E4M3 for each 16 weights, and a factor, which MLX's mode lacks. It
    is multiplied into the scales where that is exact; else the values are decoded, as float32.

    Raises:
        InputError: a matrix' parts do not fit.
    """
    rest = dict(tensors)
    bits, group_size = BYTE_SCALES["nvfp4"]
    for name in tensors:
        base = name.removesuffix(".weight_scale_2")
        if base == name:
            continue
        kinds = ("weight", "weight_scale", "weight_scale_2")
        parts = [part for x in kinds if (part := rest.pop(f"{base}.{x}", None)) is not None]
        if len(parts) != len(kinds) or not _is_nvfp4(*parts):
            text = ", ".join(f"{x.dtype} {list(x.shape)}" for x in parts)
            expected = "codes uint8 [out, in / 2], scales [out, in / 16] and one factor"
            raise InputError(f"{where}: {base}", text.replace("mlx.core.", ""), expected)
        weight, scales, factor = parts
        words, factor = weight.view(mx.uint32), factor.reshape(1)
        if (exact := folded(scales, factor)) is not None:
            columns = weight.shape[1] * 2
            matrix = MlxMatrix((words, exact), columns, "nvfp4", bits, group_size)
            found[f"{base}.weight"] = matrix
        else:
            values = mx.dequantize(words, scales, None, group_size, bits, "nvfp4", dtype=mx.float32)
            found[f"{base}.weight"] = values * factor
    return rest


def _is_nvfp4(weight: mx.array, scales: mx.array, factor: mx.array) -> bool:
    whole = weight.ndim == 2 and weight.shape[1] * 2 % 16 == 0 and factor.size == 1
    typed = weight.dtype == scales.dtype == mx.uint8 and factor.dtype == mx.float32
    return whole and typed and scales.shape == (weight.shape[0], weight.shape[1] // 8)


def _matrix(
    module: str, config: Mapping[str, Any], tensors: Mapping[str, mx.array], where: Path
) -> MlxMatrix:
    mode, bits, group_size = _settings(module, config, where / "config.json")
    kinds = ("weight", "scales", "biases")
    parts = tuple(t for k in kinds if (t := tensors.get(f"{module}.{k}")) is not None)
    if len(parts) != (3 if mode == AFFINE else 2):
        found = f"{len(parts) - 1} of scales and biases of {module}"
        raise InputError(where, found, f"those of the mode {mode}")
    words = parts[0]
    columns = words.shape[-1] * 32 // bits
    shape = (*words.shape[:-1], columns // group_size)
    wanted = mx.floating if mode == AFFINE else mx.uint8
    typed = words.dtype == mx.uint32 and all(mx.issubdtype(s.dtype, wanted) for s in parts[1:])
    whole = words.ndim >= 2 and columns % group_size == 0 and words.shape[-1] * 32 % bits == 0
    if not (whole and typed and all(part.shape == shape for part in parts[1:])):
        found = ", ".join(f"{part.dtype} {list(part.shape)}" for part in parts)
        expected = f"{mode} words, scales and biases of {bits} bits in groups of {group_size}"
        raise InputError(f"{where}: {module}", found.replace("mlx.core.", ""), expected)
    return MlxMatrix(parts, columns, mode, bits, group_size)


def _settings(module: str, config: Mapping[str, Any], where: Path) -> tuple[str, int, int]:
    """Mode, bits and group size of a module."""
    whole = config.get("quantization") or config.get("quantization_config")
    own = whole.get(module, True) if isinstance(whole, dict) else None
    if own is True:  # as most modules
        own = whole
    if not isinstance(own, dict):
        raise InputError(where, f"no quantization for {module}", "its bits, group_size and mode")
    mode, bits, group_size = own.get("mode", AFFINE), own.get("bits"), own.get("group_size")
    check_quantization(f"{where}: {module}", bits, group_size, mode)
    return str(mode), int(str(bits)), int(str(group_size))
