"""Takes the blocks of ggml's quantised types apart: levels and scales, or floating-point codes.

A type is affine where each weight is `level * scale + bias` with numbers that its group shares;
MLX holds such a type bit for bit. Arithmetic is float32: scales of float16 times small whole
numbers, and these times a level, fit its 24 bits, so that only the addition of a bias can round.
Source: ggml's block layouts (ggml/src/ggml-common.h, ggml/src/ggml-quants.c).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Blocks: TypeAlias = NDArray[Any]
"""Bytes of blocks, uint8 `[blocks, bytes]`."""


class Affine(NamedTuple):
    """Blocks as levels with a scale and a bias for each group.

    Attributes:
        levels: uint8 `[blocks, weights]`, from 0.
        scales, biases: float32 `[blocks, groups]`.
    """

    levels: Blocks
    scales: Blocks
    biases: Blocks


# The 16 levels of IQ4_NL and IQ4_XS.
_LEVELS_OF_IQ4 = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int16
)
_PAIR = np.array([0, 4], np.uint8)
_FOUR = np.array([0, 2, 4, 6], np.uint8)
_EIGHT = np.arange(8, dtype=np.uint8)


def nibbles(codes: Blocks) -> Blocks:
    """Two codes of each byte, `[..., n]` to `[..., 2 * n]`: all the low ones, then the high."""
    return np.concatenate([codes & 15, codes >> 4], axis=-1)


def _halves(blocks: Blocks, at: int) -> Blocks:
    """The float16 at byte `at` of each block, as float32 `[blocks, 1]`."""
    return blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _signed(levels: Blocks, scales: Blocks, zero: int) -> Affine:
    """Levels that stand for numbers from `-zero` on."""
    return Affine(levels, scales, -zero * scales)


def _q4_0(blocks: Blocks) -> Affine:
    return _signed(nibbles(blocks[:, 2:]), _halves(blocks, 0), 8)


def _q4_1(blocks: Blocks) -> Affine:
    return Affine(nibbles(blocks[:, 4:]), _halves(blocks, 0), _halves(blocks, 2))


def _q5(blocks: Blocks) -> Blocks:
    """Levels of Q5_0 and Q5_1: 4 bytes of fifth bits, then 16 of nibbles."""
    fifth = np.unpackbits(blocks[:, -20:-16], axis=1, bitorder="little")
    return nibbles(blocks[:, -16:]) | fifth << 4


def _q5_0(blocks: Blocks) -> Affine:
    return _signed(_q5(blocks), _halves(blocks, 0), 16)


def _q5_1(blocks: Blocks) -> Affine:
    return Affine(_q5(blocks), _halves(blocks, 0), _halves(blocks, 2))


def _q8_0(blocks: Blocks) -> Affine:
    return _signed(blocks[:, 2:] ^ 0x80, _halves(blocks, 0), 128)


def _q3_k(blocks: Blocks) -> Affine:
    """Q3_K: 16 groups of 16, each with a 6-bit scale less 32, and 3-bit levels less 4.

    Both are whole numbers, and so are their products, from -124 to 128: as 8-bit levels they need
    no scale of a group of 16, which MLX lacks, but only the block's.
    """
    codes, high = blocks[:, 32:96].reshape(-1, 2, 1, 32), blocks[:, None, None, :32]
    twos = codes >> _FOUR[:, None] & 3
    bits = high >> _EIGHT.reshape(2, 4)[..., None] & 1
    levels = (twos | bits << 2).reshape(-1, 16, 16).astype(np.int16) - 4
    packed, tops = blocks[:, 96:104], blocks[:, 104:108]
    fours = nibbles(packed)
    scales = (fours | (tops[:, None] >> _FOUR[:, None] & 3).reshape(-1, 16) << 4).astype(np.int16)
    products = levels * (scales - 32)[..., None] + 124
    scale = np.repeat(_halves(blocks, 108), 2, axis=1)
    return _signed(products.reshape(-1, 256).astype(np.uint8), scale, 124)


def _scales_of_k(blocks: Blocks) -> tuple[Blocks, Blocks]:
    """Scales and biases of Q4_K and Q5_K, float32 `[blocks, 8]`: 6 bits each in 12 bytes."""
    first, second, third = (blocks[:, at : at + 4] for at in (4, 8, 12))
    # The low bits of the last four groups are in `third`, their high bits in the top bits of
    # `first` and `second`.
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return _halves(blocks, 0) * scales, -_halves(blocks, 2) * minima


def _levels_of_k(codes: Blocks) -> Blocks:
    """4-bit levels of Q4_K and Q5_K `[blocks, 8, 32]`: 32 bytes hold a group, then the next."""
    return (codes.reshape(-1, 4, 1, 32) >> _PAIR[:, None] & 15).reshape(-1, 8, 32)


def _q4_k(blocks: Blocks) -> Affine:
    return Affine(_levels_of_k(blocks[:, 16:]).reshape(-1, 256), *_scales_of_k(blocks))


def _q5_k(blocks: Blocks) -> Affine:
    fifth = blocks[:, None, 16:48] >> _EIGHT[:, None] & 1
    levels = _levels_of_k(blocks[:, 48:]) | fifth << 4
    return Affine(levels.reshape(-1, 256), *_scales_of_k(blocks))


def _iq4(codes: Blocks, scales: Blocks) -> Affine:
    """Blocks of indices into a table of levels, which are whole numbers from -127 to 113."""
    levels = (_LEVELS_OF_IQ4[codes] + 128).astype(np.uint8)
    return _signed(levels.reshape(len(codes), -1), scales, 128)


def _iq4_nl(blocks: Blocks) -> Affine:
    return _iq4(nibbles(blocks[:, 2:]), _halves(blocks, 0))


def _iq4_xs(blocks: Blocks) -> Affine:
    """IQ4_XS: 8 groups of 32, each with a 6-bit scale less 32."""
    low = (blocks[:, 4:8, None] >> _PAIR & 15).reshape(-1, 8)
    high = (blocks[:, 2:4, None] >> _FOUR & 3).reshape(-1, 8)
    scales = (low | high << 4).astype(np.int16) - 32
    return _iq4(nibbles(blocks[:, 8:].reshape(-1, 8, 16)), _halves(blocks, 0) * scales)


def q2_k(blocks: Blocks) -> Blocks:
    """Values of Q2_K: 16 groups of 16, each with a 4-bit scale and minimum, and 2-bit levels."""
    groups, codes = blocks[:, :16], blocks[:, 16:80].reshape(-1, 2, 1, 32)
    # A byte holds one level of each of four rows of 32 weights.
    levels = codes >> _FOUR[:, None] & 3
    scales = _halves(blocks, 80) * (groups & 15)
    minima = _halves(blocks, 82) * (groups >> 4)
    return scales[..., None] * levels.reshape(-1, 16, 16) - minima[..., None]


def q6_k(blocks: Blocks) -> Blocks:
    """Values of Q6_K: 16 groups of 16, each with a signed 8-bit scale, and 6-bit levels less 32."""
    low, high = blocks[:, :128].reshape(-1, 2, 1, 64), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    fours = (low >> _PAIR[:, None] & 15).reshape(-1, 2, 4, 32)
    twos = high >> _FOUR[:, None] & 3
    levels = (fours | twos << 4).astype(np.float32) - 32
    scales = _halves(blocks, 208) * blocks[:, 192:208].view("i1")
    return scales[..., None] * levels.reshape(-1, 16, 16)


def mxfp4(blocks: Blocks) -> tuple[Blocks, Blocks]:
    """Codes of E2M1, uint8 `[blocks, 32]`, and exponents of E8M0, uint8 `[blocks, 1]`."""
    return nibbles(blocks[:, 1:]), blocks[:, :1]


def nvfp4(blocks: Blocks) -> tuple[Blocks, Blocks]:
    """Codes of E2M1, uint8 `[blocks, 64]`, and scales of E4M3, uint8 `[blocks, 4]`."""
    return nibbles(blocks[:, 4:].reshape(-1, 4, 8)).reshape(-1, 64), blocks[:, :4]


AFFINE: dict[str, Callable[[Blocks], Affine]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
"""The affine types, each with the function that takes its blocks apart."""
