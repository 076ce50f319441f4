"""Our own kernels in the emulator, from the text that MLX makes of them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from dspark_mlx.kernels.base import Product
from dspark_mlx.kernels.metal import rows, tiles
from dspark_mlx.kernels.metal.rows import Rows
from dspark_mlx.kernels.metal.tiles import Tiles

from .arrays import DTYPES, QuantizedProduct, device, host
from .emulator.emulator import Emulator
from .emulator.mlx_source import Source, generated
from .emulator.program import BY_INDEX, Order, Program

INPUTS = ["w", "scales", "biases", "x"]


def launch_of(kernel: Rows | Tiles, p: QuantizedProduct) -> dict[str, Any]:
    """How the package launches a kernel for a product."""
    product = product_of(p)
    if isinstance(kernel, Rows):
        return rows.launch(product, rows.ONE_ROW[kernel.version], kernel.outputs_a_simd)
    return tiles.launch(product, kernel.tiles_of_outputs)


def product_of(p: QuantizedProduct) -> Product:
    """The package's description of a product."""
    return Product(p.rows, p.outputs, p.inputs, p.bits, p.group_size, DTYPES[p.dtype])


def metal_kernel(body: str):
    """A kernel of ours as MLX makes it, with this source."""
    return mx.fast.metal_kernel(name="own", input_names=INPUTS, output_names=["y"], source=body)


def bound(arrays: dict[str, np.ndarray], y: np.ndarray) -> dict[str, object]:
    """Arguments of a kernel: what MLX passes for its inputs, shapes among them."""
    shapes = {f"{name}_shape": list(array.shape) for name, array in arrays.items()}
    return {**arrays, **shapes, "y": y}


def source_of(kernel: Rows | Tiles, p: QuantizedProduct, body: str | None = None) -> Source:
    """What Apple's compiler would read for a product; `body` in place of the kernel's own."""

    def call(*inputs):
        return metal_kernel(body or kernel.source)(
            inputs=list(inputs),
            output_shapes=[(p.rows, p.outputs)],
            output_dtypes=[DTYPES[p.dtype]],
            verbose=True,
            **launch_of(kernel, p),
        )

    a = p.arrays
    return generated(call, [a["weight"], a["scales"], a["biases"], a["x"]])


def run(
    emulator: Emulator,
    kernel: Rows | Tiles,
    p: QuantizedProduct,
    body: str | None = None,
    fused: bool = True,
    checked: bool = True,
    order: Order = BY_INDEX,
    offsets: dict[str, int] | None = None,
) -> np.ndarray:
    """The product as the kernel computes it; `body` in place of the kernel's own source."""
    made = source_of(kernel, p, body)
    program = emulator.msl(made.text, made.function, made.template, fused, checked)
    return _launched(program, kernel, p, order, offsets)


def weights_read(emulator: Emulator, kernel: Rows | Tiles, p: QuantizedProduct) -> int:
    """Bytes of packed words that the kernel reads."""
    made = source_of(kernel, p)
    program = emulator.msl(made.text, made.function, made.template)
    _launched(program, kernel, p, BY_INDEX, None)
    return program.read["w"]


def _launched(
    program: Program,
    kernel: Rows | Tiles,
    p: QuantizedProduct,
    order: Order,
    offsets: dict[str, int] | None,
) -> np.ndarray:
    h = p.host
    arrays = {"w": h["weight"], "scales": h["scales"], "biases": h["biases"], "x": h["x"]}
    y = p.blank()
    launch = launch_of(kernel, p)
    program(bound(arrays, y), launch["grid"], launch["threadgroup"], order, offsets)
    return y


def emulated_metal_kernel(emulator: Emulator, body: str):
    """What `mx.fast.metal_kernel` gives for our kernels, run by the emulator."""

    def call(*, inputs, template, grid, threadgroup, output_shapes, output_dtypes):
        asked = {"output_shapes": output_shapes, "output_dtypes": output_dtypes}
        launch = {"template": template, "grid": grid, "threadgroup": threadgroup}
        made = generated(
            lambda *a: metal_kernel(body)(inputs=list(a), verbose=True, **asked, **launch), inputs
        )
        program = emulator.msl(made.text, made.function, made.template)
        arrays = {name: host(a) for name, a in zip(INPUTS, inputs, strict=True)}
        y = host(mx.zeros(output_shapes[0], output_dtypes[0])).copy()
        program(bound(arrays, y), grid, threadgroup)
        return [device(y, output_dtypes[0])]

    return call
