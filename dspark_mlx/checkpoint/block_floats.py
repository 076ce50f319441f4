"""DeepSeek's storage types: FP8 and FP4 codes with a power of two for each block of weights.

FP8 is E4M3 with a scale byte for each block of 128 x 128 weights, or 32 x 32 in V4.1, those at the
edges cut off. FP4 is E2M1, two codes a byte, with a scale byte for each 32 weights of a row. A
scale byte is an exponent (E8M0). Both are what MLX calls mxfp8 and mxfp4, so that a repacked matrix
has the same values bit for bit.
"""

from __future__ import annotations

import mlx.core as mx

BLOCKS = (128, 32)
"""Rows and columns of FP8 blocks, in V4 and in V4.1."""

GROUP = 32
"""Weights that share a scale byte in MLX's modes, and in FP4."""

_BIAS = 127
# With larger ones the largest code, 6 in E2M1 and 448 in E4M3, is more than float32 holds.
_LARGEST_EXPONENTS = {"mxfp4": 252, "mxfp8": 246}
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def is_fp4(weight: mx.array) -> bool:
    """Whether a stored matrix holds FP4; MLX reads its bytes as int8, and those of FP8 as uint8."""
    return weight.dtype == mx.int8


def decode_fp8(weight: mx.array, scale: mx.array) -> mx.array:
    """The values of an FP8 matrix, float32.

    Args:
        weight: codes, uint8 `[out, in]`.
        scale: exponents of the blocks, uint8 `[ceil(out / block), ceil(in / block)]`.
    """
    (rows, columns), block = weight.shape, _block_of(weight, scale)
    each = mx.repeat(mx.repeat(scale, block, axis=0), block, axis=1)[:rows, :columns]
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
    (rows, columns), block = weight.shape, _block_of(weight, scale)
    each = mx.repeat(mx.repeat(scale, block, axis=0)[:rows], block // GROUP, axis=1)
    return words, each[:, : columns // GROUP]


def is_repackable(weight: mx.array, scale: mx.array) -> bool:
    """Whether these are a matrix that `repacked` takes, and its scale."""
    if weight.ndim != 2 or weight.dtype not in (mx.int8, mx.uint8) or scale.dtype != mx.uint8:
        return False
    if is_fp4(weight):
        return scale.shape == (weight.shape[0], weight.shape[1] * 2 // GROUP)
    return weight.shape[1] % GROUP == 0 and _block_of(weight, scale) > 0


def folded(scales: mx.array, factor: mx.array) -> mx.array | None:
    """E4M3 scales times a factor, uint8; None where E4M3 does not hold each product exactly.

    Args:
        scales: of groups of 16 weights, uint8.
        factor: of the whole matrix, float32.
    """
    wanted = mx.from_fp8(scales, mx.float32) * factor
    found = mx.to_fp8(wanted)
    return found if mx.array_equal(mx.from_fp8(found, mx.float32), wanted).item() else None


def are_finite(mode: str, scales: mx.array) -> bool:
    """Whether no scale byte of a matrix is NaN, or makes a weight infinite in float32.

    Args:
        mode: "mxfp4" or "mxfp8", whose scales are exponents, or "nvfp4", whose scales are E4M3.
        scales: the bytes, uint8.
    """
    if mode in _LARGEST_EXPONENTS:
        return bool((scales <= _LARGEST_EXPONENTS[mode]).all().item())
    return bool(((scales & 127) < 127).all().item())


def _block_of(weight: mx.array, scale: mx.array) -> int:
    """Rows and columns of an FP8 matrix's blocks; 0 where the scale is not one of this matrix."""
    rows, columns = weight.shape
    fitting = (b for b in BLOCKS if scale.shape == (-(-rows // b), -(-columns // b)))
    return next(fitting, 0)


def _powers(exponents: mx.array) -> mx.array:
    return mx.power(2.0, exponents.astype(mx.float32) - _BIAS)
