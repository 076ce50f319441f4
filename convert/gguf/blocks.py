"""Reads the data of one GGUF tensor, as values or as the parts of MLX's quantisation.

Types that one of MLX's modes can hold bit for bit are `PACKED`: their levels are only put into
MLX's order, and scales stay float16 where that is exact. The others, Q2_K and Q6_K, have groups of
16 with scales of their own, which MLX's affine mode lacks; they become plain values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np

from ...checkpoint.quantization import AFFINE
from . import formulas
from .formulas import Blocks
from .header import TENSOR_TYPES, TensorInfo

PACKED: dict[str, tuple[int, int, str]] = {
    "Q4_0": (4, 32, AFFINE),
    "Q4_1": (4, 32, AFFINE),
    "Q5_0": (5, 32, AFFINE),
    "Q5_1": (5, 32, AFFINE),
    "Q8_0": (8, 32, AFFINE),
    "Q3_K": (8, 128, AFFINE),
    "Q4_K": (4, 32, AFFINE),
    "Q5_K": (5, 32, AFFINE),
    "IQ4_NL": (8, 32, AFFINE),
    "IQ4_XS": (8, 32, AFFINE),
    "MXFP4": (4, 32, "mxfp4"),
    "NVFP4": (4, 16, "nvfp4"),
}
"""Bits per weight, group size and mode with which MLX holds a type bit for bit."""

_PLAIN = {"F32": "<f4", "F16": "<f2", "I32": "<i4", "I64": "<i8"}
DECODED = {"Q2_K": formulas.q2_k, "Q6_K": formulas.q6_k}
"""Types that become plain values, with the function that decodes their blocks."""

_FLOATING = {"mxfp4": formulas.mxfp4, "nvfp4": formulas.nvfp4}
_SIZES = {name: (weights, size) for name, weights, size in TENSOR_TYPES.values()}
# Weights that are taken apart at once: temporary arrays are several times as large.
_AT_ONCE = 1 << 20
# Damaged scales give NaN or infinity without a warning here; callers refuse these values.
_quiet = np.errstate(over="ignore", invalid="ignore")


@_quiet
def read_values(path: Path, row: TensorInfo) -> mx.array:
    """The values of a tensor: plain types as stored, quantised ones as float32.

    Where the formula of an affine type adds a bias, the sum is rounded once; all other steps are
    exact.
    """
    if row.type in _PLAIN:
        return mx.array(_raw(path, row).view(_PLAIN[row.type]).reshape(row.shape))
    if row.type == "BF16":
        return mx.array(_raw(path, row).view("<u2").reshape(row.shape)).view(mx.bfloat16)
    if row.type in DECODED:
        return mx.array(_joined(path, row, DECODED[row.type]).reshape(row.shape))
    bits, group_size, mode = PACKED[row.type]
    if mode == AFFINE:
        return mx.array(_joined(path, row, lambda blocks: _affine_values(row.type, blocks)))
    # As one matrix: MLX unpacks no vectors.
    words, scales = (part.reshape(-1, part.shape[-1]) for part in read_packed(path, row))
    values = mx.dequantize(words, scales, None, group_size, bits, mode, dtype=mx.float32)
    return values.reshape(row.shape)


@_quiet
def read_packed(path: Path, row: TensorInfo) -> tuple[mx.array, ...]:
    """Packed words, scales and for the affine mode biases of a tensor of a type in `PACKED`.

    Returns:
        Words, uint32 `[rows, columns * bits / 32]`; scales and biases `[rows, columns / group]`.
        Those of the affine mode are float16 where that holds each of the tensor's bit for bit, else
        float32; those of the other modes are bytes.
    """
    bits, _, mode = PACKED[row.type]
    split = formulas.AFFINE[row.type] if mode == AFFINE else _FLOATING[mode]
    chunks: list[tuple[Blocks, ...]] = []
    for blocks in _chunks(path, row):
        levels, *numbers = split(blocks)
        chunks.append((_pack(levels, bits), *numbers))
    rows = row.shape[:-1]
    words, *numbers = (np.concatenate(part) for part in zip(*chunks, strict=True))
    numbers = [part.reshape(*rows, -1) for part in numbers]
    if mode == AFFINE and all(np.array_equal(_half(part), part) for part in numbers):
        numbers = [part.astype(np.float16) for part in numbers]
    return mx.array(words.view("<u4").reshape(*rows, -1)), *map(mx.array, numbers)


def _pack(levels: Blocks, bits: int) -> Blocks:
    """Levels as MLX packs them: bytes of a stream of bits, the lowest first."""
    if bits == 8:
        return levels.reshape(-1)
    # Eight levels fill `bits` whole bytes.
    eights = levels.reshape(-1, 8).astype("<u8") << np.arange(0, 8 * bits, bits, dtype="<u8")
    joined = np.bitwise_or.reduce(eights, axis=1)
    return joined.view("u1").reshape(-1, 8)[:, :bits].reshape(-1)


def _half(numbers: Blocks) -> Blocks:
    """Numbers after rounding to float16."""
    return numbers.astype(np.float16).astype(np.float32)


def _affine_values(kind: str, blocks: Blocks) -> Blocks:
    levels, scales, biases = formulas.AFFINE[kind](blocks)
    grouped = levels.reshape(*scales.shape, -1)
    return grouped * scales[..., None] + biases[..., None]


def _joined(path: Path, row: TensorInfo, decode: Callable[[Blocks], Blocks]) -> Blocks:
    """The values of all blocks, in the tensor's shape."""
    values = [decode(blocks).reshape(-1) for blocks in _chunks(path, row)]
    return np.concatenate(values).reshape(row.shape)


def _chunks(path: Path, row: TensorInfo) -> Iterator[Blocks]:
    """The tensor's blocks, a few at a time."""
    weights, size = _SIZES[row.type]
    step = _AT_ONCE // weights * size
    for at in range(0, row.size, step):
        count = min(step, row.size - at)
        yield np.fromfile(path, "u1", count, offset=row.start + at).reshape(-1, size)


def _raw(path: Path, row: TensorInfo) -> Blocks:
    return np.fromfile(path, "u1", row.size, offset=row.start)
