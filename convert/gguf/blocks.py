"""Reads the data of one GGUF tensor, as values or as the parts of MLX's affine quantisation.

Q4_0, Q4_1 and Q8_0 are affine in groups of 32, so MLX can hold them bit for bit: levels are only
reordered within their words. The k-quants are not affine in this way and become plain values.
Source: ggml's block layouts (ggml/src/ggml-common.h).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from .header import TENSOR_TYPES, TensorInfo

AFFINE_BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
"""Bits per weight of the types that MLX's affine quantisation can hold."""
GROUP_SIZE = 32
"""Weights that share a scale in the types of AFFINE_BITS."""

_Array: TypeAlias = NDArray[Any]
_PLAIN = {"F32": "<f4", "F16": "<f2", "I32": "<i4", "I64": "<i8"}
# Damaged scales give NaN or infinity without a warning here; callers refuse these values.
_quiet = np.errstate(over="ignore", invalid="ignore")
_BLOCK_BYTES = {name: size for name, _, size in TENSOR_TYPES.values()}


@_quiet
def read_values(path: Path, row: TensorInfo) -> mx.array:
    """The values of a tensor: plain types as stored, quantised ones as float32.

    The product of a float16 scale and a level is exact in float32; adding the bias rounds once.
    """
    raw = _raw(path, row)
    if row.type in _PLAIN:
        return mx.array(raw.view(_PLAIN[row.type]).reshape(row.shape))
    if row.type == "BF16":
        return mx.array(raw.view("<u2").reshape(row.shape)).view(mx.bfloat16)
    blocks = raw.reshape(-1, _BLOCK_BYTES[row.type])
    if row.type not in AFFINE_BITS:
        return mx.array(_K_QUANTS[row.type](blocks).reshape(row.shape))
    levels, scales, biases = _affine(row.type, blocks)
    return mx.array((levels * scales + biases).reshape(row.shape))


@_quiet
def read_affine(path: Path, row: TensorInfo) -> tuple[mx.array, mx.array, mx.array]:
    """Packed words, scales and biases of a tensor whose type is in `AFFINE_BITS`.

    Returns:
        Words, uint32 `[rows, columns * bits / 32]`; scales and biases, float16
        `[rows, columns / 32]`. A bias is infinite where float16 cannot hold it.
    """
    blocks = _raw(path, row).reshape(-1, _BLOCK_BYTES[row.type])
    levels, scales, biases = _affine(row.type, blocks)
    if AFFINE_BITS[row.type] == 4:
        levels = levels[:, ::2] | levels[:, 1::2] << 4
    rows = row.shape[0]
    words = np.ascontiguousarray(levels).view("<u4").reshape(rows, -1)
    scales, biases = (part.astype(np.float16).reshape(rows, -1) for part in (scales, biases))
    return mx.array(words), mx.array(scales), mx.array(biases)


def _raw(path: Path, row: TensorInfo) -> _Array:
    return np.fromfile(path, "u1", row.size, offset=row.start)


def _affine(kind: str, blocks: _Array) -> tuple[_Array, _Array, _Array]:
    """Levels, uint8 `[blocks, 32]`; scales and biases, float32 `[blocks, 1]`."""
    scales = _halves(blocks, 0)
    if kind == "Q8_0":
        # Signed levels are shifted to start at 0.
        return blocks[:, 2:] ^ 0x80, scales, -128 * scales
    codes = blocks[:, -16:]
    levels = np.concatenate([codes & 15, codes >> 4], axis=1)
    return levels, scales, _halves(blocks, 2) if kind == "Q4_1" else -8 * scales


def _halves(blocks: _Array, at: int) -> _Array:
    """The float16 at byte `at` of each block, as float32 `[blocks, 1]`."""
    return blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _q2_k(blocks: _Array) -> _Array:
    """Values of Q2_K: 16 groups of 16, each with a 4-bit scale and minimum, and 2-bit levels."""
    groups, codes = blocks[:, :16], blocks[:, 16:80].reshape(-1, 2, 1, 32)
    # A byte holds one level of each of four rows of 32 weights.
    levels = codes >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    scales = _halves(blocks, 80) * (groups & 15)
    minima = _halves(blocks, 82) * (groups >> 4)
    return scales[..., None] * levels.reshape(-1, 16, 16) - minima[..., None]


def _q4_k(blocks: _Array) -> _Array:
    """Values of Q4_K: 8 groups of 32, each with a 6-bit scale and minimum, and 4-bit levels."""
    first, second, third = (blocks[:, at : at + 4] for at in (4, 8, 12))
    # The low bits of the last four groups are in `third`, their high bits in the top bits of
    # `first` and `second`.
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    codes = blocks[:, 16:].reshape(-1, 4, 1, 32)
    levels = codes >> np.array([0, 4], np.uint8)[:, None] & 15
    scales, minima = _halves(blocks, 0) * scales, _halves(blocks, 2) * minima
    return scales[..., None] * levels.reshape(-1, 8, 32) - minima[..., None]


def _q6_k(blocks: _Array) -> _Array:
    """Values of Q6_K: 16 groups of 16, each with a signed 8-bit scale, and 6-bit levels less 32."""
    low, high = blocks[:, :128].reshape(-1, 2, 1, 64), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    fours = (low >> np.array([0, 4], np.uint8)[:, None] & 15).reshape(-1, 2, 4, 32)
    twos = high >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    levels = (fours | twos << 4).astype(np.float32) - 32
    scales = _halves(blocks, 208) * blocks[:, 192:208].view("i1")
    return scales[..., None] * levels.reshape(-1, 16, 16)


_K_QUANTS = {"Q2_K": _q2_k, "Q4_K": _q4_k, "Q6_K": _q6_k}
