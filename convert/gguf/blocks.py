"""The data of one GGUF tensor: its values, or the parts of MLX's affine quantisation.

Q4_0, Q4_1 and Q8_0 are affine in groups of 32, so MLX holds them bit for bit: a level is moved to
another place in its word, and nothing is rounded. The k-quants are not, and become values.
Formats: ggml's block layouts (ggml/src/ggml-common.h).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from .header import TENSOR_TYPES, TensorInfo

AFFINE_BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
"""Bits a weight of the types that MLX's affine quantisation holds."""
GROUP_SIZE = 32
"""Weights that share a scale in them."""

_Array: TypeAlias = NDArray[Any]
_PLAIN = {"F32": "<f4", "F16": "<f2", "I32": "<i4", "I64": "<i8"}
# Damaged scales give NaN and infinity, which whoever reads them refuses.
_quiet = np.errstate(over="ignore", invalid="ignore")
_BLOCK_BYTES = {name: size for name, _, size in TENSOR_TYPES.values()}


@_quiet
def read_values(path: Path, row: TensorInfo) -> mx.array:
    """A tensor's values: plain types as stored, quantised ones as float32.

    A product of a float16 scale and a level is exact in float32; what is added to it rounds once.
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
    """Packed words, scales and biases of a tensor of one of `AFFINE_BITS`.

    Returns:
        uint32 `[rows, columns * bits / 32]`, and two float16 `[rows, columns / 32]`. A scale too
        large for its bias to be a float16 gives an infinite bias.
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
    """Levels, uint8 `[blocks, 32]`, and float32 scales and biases, `[blocks, 1]`."""
    scales = _halves(blocks, 0)
    if kind == "Q8_0":
        # Signed levels, moved to start at 0.
        return blocks[:, 2:] ^ 0x80, scales, -128 * scales
    codes = blocks[:, -16:]
    levels = np.concatenate([codes & 15, codes >> 4], axis=1)
    return levels, scales, _halves(blocks, 2) if kind == "Q4_1" else -8 * scales


def _halves(blocks: _Array, at: int) -> _Array:
    """The float16 at byte `at` of each block, as float32 `[blocks, 1]`."""
    return blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _q2_k(blocks: _Array) -> _Array:
    """16 groups of 16: a 4-bit scale and a 4-bit minimum each, 2-bit levels."""
    groups, codes = blocks[:, :16], blocks[:, 16:80].reshape(-1, 2, 1, 32)
    # A byte holds a level of four rows of 32.
    levels = codes >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    scales = _halves(blocks, 80) * (groups & 15)
    minima = _halves(blocks, 82) * (groups >> 4)
    return scales[..., None] * levels.reshape(-1, 16, 16) - minima[..., None]


def _q4_k(blocks: _Array) -> _Array:
    """8 groups of 32: a 6-bit scale and a 6-bit minimum each, 4-bit levels."""
    first, second, third = (blocks[:, at : at + 4] for at in (4, 8, 12))
    # The last four groups' low bits lie in the third word, their high ones above the first four's.
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    codes = blocks[:, 16:].reshape(-1, 4, 1, 32)
    levels = codes >> np.array([0, 4], np.uint8)[:, None] & 15
    scales, minima = _halves(blocks, 0) * scales, _halves(blocks, 2) * minima
    return scales[..., None] * levels.reshape(-1, 8, 32) - minima[..., None]


def _q6_k(blocks: _Array) -> _Array:
    """16 groups of 16: a signed 8-bit scale each, 6-bit levels around 32."""
    low, high = blocks[:, :128].reshape(-1, 2, 1, 64), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    fours = (low >> np.array([0, 4], np.uint8)[:, None] & 15).reshape(-1, 2, 4, 32)
    twos = high >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    levels = (fours | twos << 4).astype(np.float32) - 32
    scales = _halves(blocks, 208) * blocks[:, 192:208].view("i1")
    return scales[..., None] * levels.reshape(-1, 16, 16)


_K_QUANTS = {"Q2_K": _q2_k, "Q4_K": _q4_k, "Q6_K": _q6_k}
