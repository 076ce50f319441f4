"""ggml's quantised types decoded weight by weight, and random blocks of them.

Written from the formulas of `shared/checkpoint-formats-2.md`, 23.1, one weight at a time, in
float32. Slow on purpose: whole tensors are made of few blocks that repeat in random order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

F32 = np.float32
Weights: TypeAlias = list[np.float32]

SIZES = {
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "IQ4_NL": (20, 32, 18),
    "IQ4_XS": (23, 256, 136),
    "MXFP4": (39, 32, 17),
    "NVFP4": (40, 64, 36),
}
"""ggml's number, weights and bytes of a block."""

IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def half(block: bytes, at: int) -> np.float32:
    return F32(np.frombuffer(block, "<f2", 1, at)[0])


def nibble(block: bytes, at: int, i: int, size: int = 16) -> int:
    """Code i of `2 * size`: the low nibbles of `size` bytes, then the high ones."""
    return block[at + i] & 15 if i < size else block[at + i - size] >> 4


def e2m1(code: int) -> np.float32:
    return F32(-E2M1[code & 7] if code & 8 else E2M1[code & 7])


def e4m3(byte: int) -> np.float32:
    exponent, mantissa = byte >> 3 & 15, byte & 7
    if exponent == 0:
        return F32(mantissa * 2.0**-9)
    return F32((8 + mantissa) * 2.0 ** (exponent - 10))


def q4_0(b: bytes) -> Weights:
    return [half(b, 0) * F32(nibble(b, 2, i) - 8) for i in range(32)]


def q4_1(b: bytes) -> Weights:
    return [half(b, 0) * F32(nibble(b, 4, i)) + half(b, 2) for i in range(32)]


def q5(b: bytes, at: int, i: int) -> int:
    bits = int.from_bytes(b[at : at + 4], "little")
    return nibble(b, at + 4, i) | (bits >> i & 1) << 4


def q5_0(b: bytes) -> Weights:
    return [half(b, 0) * F32(q5(b, 2, i) - 16) for i in range(32)]


def q5_1(b: bytes) -> Weights:
    return [half(b, 0) * F32(q5(b, 4, i)) + half(b, 2) for i in range(32)]


def q8_0(b: bytes) -> Weights:
    return [half(b, 0) * F32(int.from_bytes(b[2 + i : 3 + i], signed=True)) for i in range(32)]


def q2_k(b: bytes) -> Weights:
    out = []
    for i in range(256):
        n, j, at, group = i // 128, i % 128 // 32, i % 32, b[i // 16]
        q = b[16 + 32 * n + at] >> 2 * j & 3
        out.append(half(b, 80) * F32(group & 15) * F32(q) - half(b, 82) * F32(group >> 4))
    return out


def q3_k(b: bytes) -> Weights:
    out = []
    for i in range(256):
        n, j, at, g = i // 128, i % 128 // 32, i % 32, i // 16
        q = b[32 + 32 * n + at] >> 2 * j & 3
        if not b[at] >> (4 * n + j) & 1:
            q -= 4
        low = b[96 + g] & 15 if g < 8 else b[96 + g - 8] >> 4
        high = b[96 + 8 + g % 4] >> 2 * (g // 4) & 3
        out.append(half(b, 108) * F32((low | high << 4) - 32) * F32(q))
    return out


def six_bits(s: bytes, j: int) -> tuple[int, int]:
    """Scale and minimum j of the 8 in 12 bytes."""
    if j < 4:
        return s[j] & 63, s[j + 4] & 63
    return s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4


def q4_k(b: bytes) -> Weights:
    out = []
    for i in range(256):
        j, at = i // 32, i // 64 * 32 + i % 32
        q = b[16 + at] >> 4 if j % 2 else b[16 + at] & 15
        scale, minimum = six_bits(b[4:16], j)
        out.append(half(b, 0) * F32(scale) * F32(q) - half(b, 2) * F32(minimum))
    return out


def q5_k(b: bytes) -> Weights:
    out = []
    for i in range(256):
        j, at = i // 32, i // 64 * 32 + i % 32
        q = b[48 + at] >> 4 if j % 2 else b[48 + at] & 15
        q |= (b[16 + i % 32] >> j & 1) << 4
        scale, minimum = six_bits(b[4:16], j)
        out.append(half(b, 0) * F32(scale) * F32(q) - half(b, 2) * F32(minimum))
    return out


def q6_k(b: bytes) -> Weights:
    out = []
    for i in range(256):
        n, quarter, at = i // 128, i % 128 // 32, i % 32
        low = b[64 * n + 32 * (quarter % 2) + at] >> 4 * (quarter // 2) & 15
        high = b[128 + 32 * n + at] >> 2 * quarter & 3
        scale = int.from_bytes(b[192 + i // 16 : 193 + i // 16], signed=True)
        out.append(half(b, 208) * F32(scale) * F32((low | high << 4) - 32))
    return out


def iq4_nl(b: bytes) -> Weights:
    return [half(b, 0) * F32(IQ4[nibble(b, 2, i)]) for i in range(32)]


def iq4_xs(b: bytes) -> Weights:
    out = []
    for i in range(256):
        j = i // 32
        low = b[4 + j // 2] >> 4 if j % 2 else b[4 + j // 2] & 15
        scale = (low | (int.from_bytes(b[2:4], "little") >> 2 * j & 3) << 4) - 32
        out.append(half(b, 0) * F32(scale) * F32(IQ4[nibble(b, 8 + 16 * j, i % 32)]))
    return out


def mxfp4(b: bytes) -> Weights:
    return [F32(math.ldexp(e2m1(nibble(b, 1, i)), b[0] - 127)) for i in range(32)]


def nvfp4(b: bytes) -> Weights:
    return [e2m1(nibble(b, 4 + i // 16 * 8, i % 16, 8)) * e4m3(b[i // 16]) for i in range(64)]


DECODERS: dict[str, Callable[[bytes], Weights]] = {kind: globals()[kind.lower()] for kind in SIZES}

# Where a block has its float16 numbers, and their usual size with weights of about 0.06.
_HALVES = {
    "Q4_0": {0: 0.014},
    "Q4_1": {0: 0.014, 2: -0.1},
    "Q5_0": {0: 0.007},
    "Q5_1": {0: 0.007, 2: -0.1},
    "Q8_0": {0: 0.0008},
    "Q2_K": {80: 0.008, 82: 0.012},
    "Q3_K": {108: 0.0015},
    "Q4_K": {0: 0.0004, 2: 0.003},
    "Q5_K": {0: 0.0002, 2: 0.003},
    "Q6_K": {208: 0.00004},
    "IQ4_NL": {0: 0.0008},
    "IQ4_XS": {0: 0.00005},
}


def random_blocks(kind: str, count: int, seed: int = 4) -> np.ndarray:
    """Blocks of any bytes, uint8 `[count, bytes]`, but for scales, which make small weights."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, SIZES[kind][2]), dtype=np.uint8)
    if kind == "MXFP4":
        blocks[:, 0] = rng.integers(120, 124, count)
    if kind == "NVFP4":
        blocks[:, :4] = rng.integers(0, 24, (count, 4))
    for at, size in _HALVES.get(kind, {}).items():
        halves = (size * rng.uniform(0.5, 1.5, count)).astype("<f2")
        blocks[:, at : at + 2] = halves[:, None].view("u1")
    return blocks


def decoded(kind: str, blocks: np.ndarray) -> np.ndarray:
    """The weights of blocks, float32 `[count, weights]`, one by one."""
    return np.array([DECODERS[kind](block.tobytes()) for block in blocks], np.float32)


def tiled(kind: str, shape: tuple[int, ...], seed: int) -> tuple[bytes, np.ndarray]:
    """A tensor made of 24 random blocks in random order: its bytes, and its values."""
    blocks = random_blocks(kind, 24, seed)
    count = math.prod(shape) // SIZES[kind][1]
    order = np.random.default_rng(seed).integers(0, len(blocks), count)
    return blocks[order].tobytes(), decoded(kind, blocks)[order].reshape(shape)
