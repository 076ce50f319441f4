"""MLX's operations on rows or single numbers: norms, rotary positions, sums, embeddings."""

from __future__ import annotations

from math import log2

import numpy as np

from ..emulator.emulator import Emulator
from .wheel import StockKernels

RMS_READS = 4  # values that a lane of `rms` reads
FORWARD, HEADS_BEHIND_ROWS = 1, 3  # function constants of `rope`


def rms_norm(
    emulator: Emulator, stock: StockKernels, x: np.ndarray, weight: np.ndarray, eps: float
) -> np.ndarray:
    """float32 `[rows, size]`, size at most 4,096."""
    rows, size = x.shape
    out = np.zeros_like(x)
    lanes = -(-size // (RMS_READS * 32)) * 32
    given = {"x": x, "w": weight, "out": out, "eps": eps, "axis_size": size, "w_stride": 1}
    emulator.air(stock.metallib, "rmsfloat32", {20: 1})(given, (rows * lanes, 1, 1), (lanes, 1, 1))
    return out


def rope(
    emulator: Emulator, stock: StockKernels, x: np.ndarray, base: float, offset: int
) -> np.ndarray:
    """Rotated queries or keys.

    Args:
        x: float32 `[rows, heads, size]`, as projections give it.
        offset: position of the first row.

    Returns:
        `[heads, rows, size]`, by `rope_single` for one row, as MLX does.
    """
    rows, heads, size = x.shape
    out = np.zeros((heads, rows, size), np.float32)
    given = {"in": x, "out": out, "offset": np.array([offset], np.int32), "scale": 1.0}
    given["base"] = log2(base)
    if rows == 1:
        program = emulator.air(stock.metallib, "rope_single_float32", {FORWARD: 1})
        program({**given, "stride": size}, (size // 2, heads, 1), (32, 1, 1))
        return out
    strides = [size, heads * size, 1]
    given |= {"strides": strides, "out_strides": [rows * size, size, 1], "n_head": heads}
    constants = {FORWARD: 1, HEADS_BEHIND_ROWS: 1}
    program = emulator.air(stock.metallib, "rope_float32", constants)
    program({**given, "offset_stride": 0}, (size // 2, rows, -(-heads // 4)), (32, 1, 1))
    return out


def elementwise(
    emulator: Emulator, stock: StockKernels, name: str, a: np.ndarray, b: np.ndarray | None = None
) -> np.ndarray:
    """`Add` or `Multiply` of two arrays of one shape, or `Sigmoid` of one, in float32."""
    out = np.zeros_like(a)
    grid, group = (a.size, 1, 1), (min(a.size, 256), 1, 1)
    if b is None:
        program = emulator.air(stock.metallib, f"v_{name}float32float32")
        program({"in": a, "out": out, "size": a.size}, grid, group)
    else:
        program = emulator.air(stock.metallib, f"vv_{name}float32")
        program({"a": a, "b": b, "c": out, "size": a.size}, grid, group)
    return out


def dequantize(
    emulator: Emulator,
    stock: StockKernels,
    packed: np.ndarray,
    scales: np.ndarray,
    biases: np.ndarray,
    group_size: int,
) -> np.ndarray:
    """Rows of a matrix of 4 bits, float32 `[rows, 8 * words]`."""
    out = np.zeros((len(packed), packed.shape[1] * 8), np.float32)
    program = emulator.air(stock.metallib, f"affine_dequantize_float_gs_{group_size}_b_4")
    # A lane unpacks a byte.
    grid = (packed.size * 4, 1, 1)
    given = {"w": packed.view(np.uint8), "scales": scales, "biases": biases, "out": out}
    program(given, grid, (min(grid[0], 256), 1, 1))
    return out


def argmax(emulator: Emulator, stock: StockKernels, logits: np.ndarray) -> np.ndarray:
    """Index of the largest of each row, uint32 `[rows]`."""
    rows, size = logits.shape
    out = np.zeros(rows, np.uint32)
    given = {"in": logits, "out": out, "shape": [rows], "in_strides": [size], "out_strides": [1]}
    given |= {"ndim": 1, "axis_stride": 1, "axis_size": size}
    lanes = min(256, -(-size // 128) * 32)
    program = emulator.air(stock.metallib, "argmax_float32")
    program(given, (lanes, rows, 1), (lanes, 1, 1))
    return out
