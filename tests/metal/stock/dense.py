"""MLX's products with 16-bit matrices that are not quantized: `gemv` and `gemv_wide`.

From mlx/backend/metal/matmul.cpp, for matrices of more than 64 columns and fewer than 4,096 rows.
"""

from __future__ import annotations

import numpy as np

from ..emulator.emulator import Emulator
from .wheel import StockKernels


def type_of(x: np.ndarray) -> str:
    """MLX's name of the type."""
    return "bfloat16" if x.dtype == np.uint16 else "float16"


def gemv(emulator: Emulator, stock: StockKernels, x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Each row of x by itself, as a step of plain decoding computes it.

    Args:
        x: float16 or bfloat16's bits, `[rows, inputs]`.
        matrix: `[outputs, inputs]`.
    """
    outputs, inputs = matrix.shape
    y = np.zeros((len(x), outputs), x.dtype)
    name = f"gemv_{type_of(x)}_bm4_bn1_sm1_sn32_tm4_tn4_nc0_axpby0"
    # Its last threadgroup is moved back, and writes outputs that others write too.
    program = emulator.air(stock.metallib, name, checked=outputs % 16 == 0)
    for row, out in zip(x, y, strict=True):
        given = {"mat": matrix, "in_vec": row, "out_vec": out, "in_vec_size": inputs}
        # Apple's name is spelt so.
        given |= {"out_vec_size": outputs, "marix_ld": inputs}
        program(given, (-(-outputs // 16) * 32, 1, 4), (32, 1, 4))
    return y


def gemv_wide(
    emulator: Emulator, stock: StockKernels, x: np.ndarray, matrix: np.ndarray
) -> np.ndarray:
    """Two to fifteen rows at once, in tiles of five at most, from generation 15 on."""
    outputs, inputs = matrix.shape
    rows = len(x)
    tiles = -(-rows // 5)
    lanes = 32 if tiles == 1 or outputs <= 64 else 16
    name = f"gemv_wide_{type_of(x)}_nv{-(-rows // tiles)}_kl{lanes}"
    y = np.zeros((rows, outputs), x.dtype)
    given = {"mat": matrix, "in_vec": x, "out_vec": y, "in_vec_size": inputs, "M": rows}
    given |= {"out_vec_size": outputs, "matrix_ld": inputs, "vector_ld": inputs}
    group = (32, lanes // 8, 1)
    emulator.air(stock.metallib, name)(given, (tiles * 32, -(-outputs // 4) * group[1], 1), group)
    return y
