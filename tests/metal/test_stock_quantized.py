"""MLX's own quantized products in the emulator: right, and the same from source and from Apple."""

from __future__ import annotations

import numpy as np
import pytest

from .arrays import TOLERANCE, QuantizedProduct, differing
from .emulator.program import EmulationError, Order
from .stock.quantized import (
    arguments,
    one_row_kernel,
    one_row_steps,
    product,
    qmm,
    qmv_fast,
    qmv_wide,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("choice", "rows"), [(qmv_fast, 3), (qmv_wide, 2), (qmv_wide, 8), (qmm, 13)]
)
def test_products_are_right(emulator, stock, choice, rows, bits, dtype):
    """An emulator in which Apple's own kernels compute something else."""
    p = QuantizedProduct(rows, 64, 512, bits, dtype)
    assert p.error(product(emulator, stock, choice, p)) < TOLERANCE[dtype]


@pytest.mark.parametrize("shape", [(512, 77), (96, 64), (128, 40), (64, 9)])
def test_unaligned_products_are_right(emulator, stock, shape):
    """The kernels for shapes that no tile divides: qmv, partial rows, qmv_quad."""
    inputs, outputs = shape
    p = QuantizedProduct(2, outputs, inputs, group_size=32)
    assert p.error(one_row_steps(emulator, stock, p)) < TOLERANCE["float32"]


@pytest.mark.parametrize(
    "order", [Order(), Order(simd=1, matrix=1), Order(simd=3, matrix=2), Order(simd=4, matrix=3)]
)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("choice", [qmv_fast, qmv_wide, qmm])
def test_source_and_compiled_kernel_agree_in_every_bit(emulator, stock, choice, fused, order):
    """A header shim that reads Metal's source otherwise than Apple's compiler does."""
    p = QuantizedProduct(4, 64, 512)
    apple = product(emulator, stock, choice, p, fused, order)
    ours = product(emulator, stock, choice, p, fused, order, source=True)
    assert differing(apple, ours) == 0
    assert p.error(ours) < TOLERANCE["float32"]


@pytest.mark.parametrize("choice", [qmv_fast, qmv_wide])
def test_source_and_compiled_kernel_agree_in_half_types(emulator, stock, choice):
    """Roundings between operations in float16, which float32 has none of."""
    for dtype in ("float16", "bfloat16"):
        p = QuantizedProduct(4, 64, 512, 8, dtype)
        apple = product(emulator, stock, choice, p)
        assert differing(apple, product(emulator, stock, choice, p, source=True)) == 0


def test_wide_kernel_differs_from_one_row_steps(emulator, stock):
    """The reason for a kernel of our own: stock's few rows are not those of plain decoding."""
    p = QuantizedProduct(4, 64, 1024)
    wide = product(emulator, stock, qmv_wide, p)
    one_row = one_row_steps(emulator, stock, p)
    assert differing(wide, one_row) > 0
    assert p.error(wide) < TOLERANCE["float32"]
    # So are those of generations 13 and 14, which launch the one-row kernel for each.
    assert differing(product(emulator, stock, qmv_fast, p), one_row) == 0


def test_wide_kernel_does_not_depend_on_the_number_of_rows(emulator, stock):
    """From two to five rows a row's bits stay."""
    p = QuantizedProduct(4, 64, 512)
    pairs = (p.part(0, 2), p.part(2, 4))
    halves = np.concatenate([product(emulator, stock, qmv_wide, pair) for pair in pairs])
    assert differing(product(emulator, stock, qmv_wide, p), halves) == 0


def test_compiled_kernels_are_checked_too(emulator, stock):
    """Checks that hold for sources alone: an input that is too short, outputs that two write.

    The second is stock's own: unaligned, `qmv` moves its last tile back and computes some outputs
    twice, to the same values.
    """
    p = QuantizedProduct(1, 77, 320)
    program = emulator.air(stock.metallib, one_row_kernel(stock.version, p))
    grid, group = (32, 20, 1), (32, 2, 1)
    given = arguments(p, p.host["x"], p.blank())
    with pytest.raises(EmulationError, match="race on y"):
        program(given, grid, group)
    with pytest.raises(EmulationError, match="of x, which has 1276 bytes"):
        program({**given, "x": p.host["x"][:, :-1]}, grid, group)
