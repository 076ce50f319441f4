"""MLX's affine products: which kernel it takes for a shape, its launch and its arguments.

From mlx/backend/metal/quantized.cpp, and for what changed after it from the machine code of the
wheel's libmlx.dylib (`qmv`, `dispatch_qmv`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..arrays import QuantizedProduct
from ..emulator.emulator import Emulator
from ..emulator.mlx_source import mlx_headers
from ..emulator.program import BY_INDEX, Grid, Order, Program
from ..emulator.toolchain import SHIM
from .flatten import flattened
from .wheel import StockKernels

TYPE_NAMES = {"float32": "float", "float16": "float16_t", "bfloat16": "bfloat16_t"}
HEADERS = ("utils.h", "steel/gemm/gemm.h", "quantized_utils.h", "quantized.h")
MOST_ROWS_A_TILE = 5  # of qmv_wide


def fast_columns(bits: int) -> int:
    """K has to be a multiple of this for `qmv_fast`."""
    return 32 // bits * 2 * 32


def one_row_kernel(version: str, p: QuantizedProduct) -> str:
    """The kernel that a product of one row takes."""
    aligned = p.inputs % fast_columns(p.bits) == 0
    stem = f"{TYPE_NAMES[p.dtype]}_gs_{p.group_size}_b_{p.bits}"
    if p.inputs in (64, 128):
        return f"affine_qmv_quad_{stem}_d_{p.inputs}_batch_0"
    if version < "0.32.4":
        fast = aligned and p.outputs % 8 == 0
        return f"affine_qmv_{'fast_' if fast else ''}{stem}_batch_0"
    partial = int(aligned and p.outputs % 8 != 0)
    return f"affine_qmv_{'fast_' if aligned else ''}{stem}_batch_0_pr_{partial}_hgs_0_r_4"


def arguments(p: QuantizedProduct, x: np.ndarray, y: np.ndarray) -> dict[str, object]:
    """By the names that MLX's kernels have for them."""
    sizes = {"in_vec_size": p.inputs, "out_vec_size": p.outputs, "K": p.inputs, "N": p.outputs}
    h = p.host
    weights = {"w": h["weight"], "scales": h["scales"], "biases": h["biases"]}
    return {**weights, **sizes, "x": x, "y": y, "M": len(x)}


def qmv(
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
    tall = 64 if "quad" in name else 8
    simds = 1 if "quad" in name else 2
    grid = (32, -(-p.outputs // tall) * simds, 1)
    for row, out in zip(p.host["x"], y, strict=True):
        program(arguments(p, row[None], out[None]), grid, (32, simds, 1), order=order)
    return y


def wide_launch(p: QuantizedProduct) -> tuple[int, Grid, Grid]:
    """Rows of a tile, grid and threadgroup of `qmv_wide`, which generations from 15 on take."""
    tiles = -(-p.rows // MOST_ROWS_A_TILE)
    tile = -(-p.rows // tiles)
    return tile, (-(-p.rows // tile) * 32, -(-p.outputs // 8) * 2, 1), (32, 2, 1)


def qmv_wide(emulator, stock, p, fused=True, order=BY_INDEX, source=False):
    """Two rows or more at once, in tiles of five at most."""
    tile, grid, group = wide_launch(p)
    kind = TYPE_NAMES[p.dtype]
    name = f"affine_qmv_wide_{kind}_gs_{p.group_size}_b_{p.bits}_nv_{tile}_kl_8_batch_0"
    template = (kind, str(p.group_size), str(p.bits), str(tile), "8", "false")
    return _run(emulator, stock, p, name, template, grid, group, fused, order, source)


def qmm(emulator, stock, p, fused=True, order=BY_INDEX, source=False):
    """Many rows, by 8x8 matrices."""
    aligned = "true" if p.outputs % 32 == 0 else "false"
    kind = TYPE_NAMES[p.dtype]
    name = f"affine_qmm_t_{kind}_gs_{p.group_size}_b_{p.bits}_alN_{aligned}_batch_0"
    template = (kind, str(p.group_size), str(p.bits), aligned, "false", "false")
    grid = (-(-p.outputs // 32) * 32, -(-p.rows // 32) * 2, 2)
    return _run(emulator, stock, p, name, template, grid, (32, 2, 2), fused, order, source)


def qmv_fast(emulator, stock, p, fused=True, order=BY_INDEX, source=False):
    """All rows in one launch of the one-row kernel, as generations 13 and 14 do."""
    kind = TYPE_NAMES[p.dtype]
    name = one_row_kernel(stock.version, p)
    template = (kind, str(p.group_size), str(p.bits), "false", "false", "false", "4")
    grid = (p.rows * 32, -(-p.outputs // 8) * 2, 1)
    return _run(emulator, stock, p, name, template, grid, (32, 2, 1), fused, order, source)


def _run(emulator, stock, p, name, template, grid, group, fused, order, source) -> np.ndarray:
    y = p.blank()
    if source:
        program = from_source(emulator, stock.headers, f"affine_{name_of(name)}", template, fused)
    else:
        program = emulator.air(stock.metallib, name, fused=fused)
    program(arguments(p, p.host["x"], y), grid, group, order=order)
    return y


def name_of(kernel: str) -> str:
    """ "qmv_fast" of "affine_qmv_fast_float_gs_64..."."""
    for name in ("qmv_fast", "qmv_wide", "qmm_t"):
        if name in kernel:
            return name
    raise ValueError(kernel)


def from_source(
    emulator: Emulator, headers: Path, function: str, template: tuple[str, ...], fused: bool
) -> Program:
    """One of MLX's quantized kernels from its headers, read by clang."""
    folder = "mlx/backend/metal/kernels/"
    text = flattened([folder + name for name in HEADERS], (SHIM, headers))
    return emulator.msl(
        text,
        function,
        template,
        fused=fused,
        preamble="#include <metal_stdlib>\nusing namespace metal;\n",
        headers=headers,
    )


def installed_headers() -> Path:
    """The headers of the MLX that is installed."""
    return mlx_headers()
