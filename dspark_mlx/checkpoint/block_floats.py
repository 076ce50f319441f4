"""DeepSeek's storage types: FP8 and FP4 codes with a power of two for each block of weights.

FP8 is E4M3 with a scale byte for each block of 128 x 128 weights, those at the edges cut off. FP4
is E2M1, two codes a byte, with a scale byte for each 32 weights of a row. A scale byte is an
exponent (E8M0). Both are what MLX calls mxfp8 and mxfp4, so that a repacked matrix has the same
values bit for bit.
"""

from __future__ import annotations

import mlx.core as mx

BLOCK = 128
"""Rows and columns of an FP8 block."""

GROUP = 32
"""Weights that share a scale byte in MLX's modes, and in FP4."""

_BIAS = 127
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def is_fp4(weight: mx.array) -> bool:
    """Whether a stored matrix holds FP4; MLX reads its bytes as int8, and those of FP8 as uint8."""
    return weight.dtype == mx.int8


def decode_fp8(weight: mx.array, scale: mx.array) -> mx.array:
    """The values of an FP8 matrix, float32.

    Args:
        weight: codes, uint8 `[out, in]`.
        scale: exponents, uint8 `[ceil(out / 128), ceil(in / 128)]`.
    """
    rows, columns = weight.shape
    each = mx.repeat(mx.repeat(scale, BLOCK, axis=0), BLOCK, axis=1)[:rows, :columns]
    return mx.from_fp8(weight, mx.float32) * _powers(each)


def decode_fp4(weight: mx.array, scale: mx.array) -> mx.array:
    """The values of an FP4 matrix, float32.

    Args:
        weight: bytes of two codes, the low one first, int8 `[out, in / 2]`.
        scale: exponents, uint8 `[out, in / 32]`.
    """
    table = mx.array(_MAGNITUDES + tuple(-value for value in _MAGNITUDES))
    codes = weight.view(mx.uint8)
    values = table[mx.stack([codes & 15, codes >> 4], axis=-1).flatten(-2)]
    return values * _powers(mx.repeat(scale, GROUP, axis=1))


def repacked(weight: mx.array, scale: mx.array) -> tuple[mx.array, mx.array]:
    """The same matrix in MLX's mxfp4 or mxfp8: words uint32, and scales uint8 `[out, in / 32]`.

    Args:
        weight, scale: see `decode_fp8` and `decode_fp4`; rows are a multiple of 32 weights.
    """
    words = weight.view(mx.uint32)
    if is_fp4(weight):
        return words, scale
    rows, columns = weight.shape
    each = mx.repeat(mx.repeat(scale, BLOCK, axis=0)[:rows], BLOCK // GROUP, axis=1)
    return words, each[:, : columns // GROUP]


def expected_scale(weight: mx.array) -> tuple[int, int] | None:
    """Shape of the scale that belongs to a stored matrix; None where `repacked` cannot take it."""
    if weight.ndim != 2 or weight.dtype not in (mx.int8, mx.uint8):
        return None
    rows, stored = weight.shape
    columns = stored * 2 if is_fp4(weight) else stored
    if columns % GROUP:
        return None
    return (rows, columns // GROUP) if is_fp4(weight) else (-(-rows // BLOCK), -(-columns // BLOCK))


def _powers(exponents: mx.array) -> mx.array:
    return mx.power(2.0, exponents.astype(mx.float32) - _BIAS)
