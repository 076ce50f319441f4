"""MLX's affine products: which kernel it takes for a shape, its launch and its arguments.

From mlx/backend/metal/quantized.cpp, and for what changed after it from the machine code of the
wheel's libmlx.dylib (`qmv`, `dispatch_qmv`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ..arrays import QuantizedProduct
from ..emulator.emulator import Emulator
from ..emulator.program import BY_INDEX, Grid, Order, Program
from ..emulator.toolchain import SHIM
from .flatten import flattened
from .wheel import StockKernels

TYPE_NAMES = {"float32": "float", "float16": "float16_t", "bfloat16": "bfloat16_t"}
FOLDER = "mlx/backend/metal/kernels/"
HEADERS = ("utils.h", "steel/gemm/gemm.h", "quantized_utils.h", "quantized.h")
PREAMBLE = "#include <metal_stdlib>\nusing namespace metal;\n"
MOST_ROWS_A_TILE = 5  # of qmv_wide


@dataclass(frozen=True)
class Launch:
    """A stock kernel for a product.

    Attributes:
        name: in the metallib.
        function: in MLX's headers.
        template: the function's template arguments.
        grid, group: threads in all, and of a threadgroup.
    """

    name: str
    function: str
    template: tuple[str, ...]
    grid: Grid
    group: Grid


Choice: TypeAlias = Callable[[str, QuantizedProduct], Launch]
"""A launch for an MLX version and a product."""


def fast_columns(bits: int) -> int:
    """K has to be a multiple of this for `qmv_fast`."""
    return 32 // bits * 2 * 32


def one_row_kernel(version: str, p: QuantizedProduct) -> str:
    """The kernel that a product of one row takes."""
    aligned = p.inputs % fast_columns(p.bits) == 0
    stem = _stem(p)
    if p.inputs in (64, 128):
        return f"affine_qmv_quad_{stem}_d_{p.inputs}_batch_0"
    if version < "0.32.4":
        fast = aligned and p.outputs % 8 == 0
        return f"affine_qmv_{'fast_' if fast else ''}{stem}_batch_0"
    partial = int(aligned and p.outputs % 8 != 0)
    return f"affine_qmv_{'fast_' if aligned else ''}{stem}_batch_0_pr_{partial}_hgs_0_r_4"


def qmv_fast(version: str, p: QuantizedProduct) -> Launch:
    """All rows in one launch of the one-row kernel, as generations 13 and 14 do."""
    template = (*_types(p), "false", "false", "false", "4")
    grid = (p.rows * 32, -(-p.outputs // 8) * 2, 1)
    return Launch(one_row_kernel(version, p), "affine_qmv_fast", template, grid, (32, 2, 1))


def qmv_wide(version: str, p: QuantizedProduct) -> Launch:
    """Two rows or more at once, in tiles of five at most, as generations from 15 on do."""
    tiles = -(-p.rows // MOST_ROWS_A_TILE)
    tile = -(-p.rows // tiles)
    name = f"affine_qmv_wide_{_stem(p)}_nv_{tile}_kl_8_batch_0"
    grid = (-(-p.rows // tile) * 32, -(-p.outputs // 8) * 2, 1)
    template = (*_types(p), str(tile), "8", "false")
    return Launch(name, "affine_qmv_wide", template, grid, (32, 2, 1))


def qmm(version: str, p: QuantizedProduct) -> Launch:
    """Many rows, by 8x8 matrices."""
    aligned = "true" if p.outputs % 32 == 0 else "false"
    name = f"affine_qmm_t_{_stem(p)}_alN_{aligned}_batch_0"
    grid = (-(-p.outputs // 32) * 32, -(-p.rows // 32) * 2, 2)
    template = (*_types(p), aligned, "false", "false")
    return Launch(name, "affine_qmm_t", template, grid, (32, 2, 2))


def product(
    emulator: Emulator,
    stock: StockKernels,
    choice: Choice,
    p: QuantizedProduct,
    fused: bool = True,
    order: Order = BY_INDEX,
    source: bool = False,
) -> np.ndarray:
    """All rows in one launch, by the compiled kernel or, with `source`, from MLX's headers."""
    launch = choice(stock.version, p)
    if source:
        program = _from_source(emulator, stock, launch, fused)
    else:
        program = emulator.air(stock.metallib, launch.name, fused=fused)
    y = p.blank()
    program(arguments(p, p.host["x"], y), launch.grid, launch.group, order=order)
    return y


def one_row_steps(
    emulator: Emulator,
    stock: StockKernels,
    p: QuantizedProduct,
    fused: bool = True,
    order: Order = BY_INDEX,
    checked: bool = True,
) -> np.ndarray:
    """Each row of x by itself, as a step of plain decoding computes it."""
    y = p.blank()
    name = one_row_kernel(stock.version, p)
    # Unaligned, its last tile is moved back and computes outputs again that others write too.
    checked = checked and ("_qmv_fast_" in name or "_quad_" in name)
    program = emulator.air(stock.metallib, name, fused=fused, checked=checked)
    outputs, simds = (64, 1) if "_quad_" in name else (8, 2)
    grid = (32, -(-p.outputs // outputs) * simds, 1)
    for row, out in zip(p.host["x"], y, strict=True):
        program(arguments(p, row[None], out[None]), grid, (32, simds, 1), order=order)
    return y


def _stem(p: QuantizedProduct) -> str:
    return f"{TYPE_NAMES[p.dtype]}_gs_{p.group_size}_b_{p.bits}"


def _types(p: QuantizedProduct) -> tuple[str, str, str]:
    return TYPE_NAMES[p.dtype], str(p.group_size), str(p.bits)


def arguments(p: QuantizedProduct, x: np.ndarray, y: np.ndarray) -> dict[str, object]:
    """By the names that MLX's kernels have for them."""
    sizes = {"in_vec_size": p.inputs, "out_vec_size": p.outputs, "K": p.inputs, "N": p.outputs}
    h = p.host
    weights = {"w": h["weight"], "scales": h["scales"], "biases": h["biases"]}
    return {**weights, **sizes, "x": x, "y": y, "M": len(x)}


def _from_source(emulator: Emulator, stock: StockKernels, launch: Launch, fused: bool) -> Program:
    text = flattened([FOLDER + name for name in HEADERS], (SHIM, stock.headers))
    return emulator.msl(
        text, launch.function, launch.template, fused, preamble=PREAMBLE, headers=stock.headers
    )
