"""Kernel "rows" against Apple's compiled one-row kernels, bit by bit, for each known version."""

from __future__ import annotations

import pytest

from dspark_mlx.kernels.metal.rows import ONE_ROW, Rows
from dspark_mlx.kernels.metal.tiles import Tiles

from .arrays import TOLERANCE, QuantizedProduct, differing
from .emulator.program import Order
from .own import run
from .stock.quantized import one_row_steps
from .stock.wheel import VERSIONS

pytestmark = pytest.mark.slow

# outputs, inputs, group: qmv_fast, its partial rows (0.32.4), qmv where K is unaligned, few
# outputs.
SHAPES = [(16, 512, 64), (13, 1024, 32), (18, 320, 64), (5, 384, 128)]


def test_every_known_version_is_compared():
    """A version that was added without a comparison."""
    assert set(ONE_ROW) == set(VERSIONS)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("version", VERSIONS)
def test_rows_have_the_bits_of_one_row_steps(emulator, stock_of, version, dtype, bits, fused):
    """Verified tokens whose logits are not those of plain decoding.

    float32 is the sharp case: rounding the output to 16 bits hides most changes of order.
    """
    stock = stock_of(version)
    for outputs, inputs, group in SHAPES:
        p = QuantizedProduct(3, outputs, inputs, bits, dtype, group)
        for simd in range(5):
            order = Order(simd=simd)
            ours = run(emulator, Rows(version), p, fused=fused, order=order)
            apple = one_row_steps(emulator, stock, p, fused=fused, order=order)
            # Older versions add four values of x in 16 bits, and are that much less right.
            assert p.error(apple) < 2 * TOLERANCE[dtype]
            assert differing(ours, apple) == 0, (outputs, inputs, simd)


@pytest.mark.parametrize("m", [1, 2, 5, 8, 16])
def test_any_number_of_rows_is_exact(emulator, stock, m):
    """A number of rows whose registers are used otherwise."""
    p = QuantizedProduct(m, 16, 1024)
    assert differing(run(emulator, Rows("0.32.4"), p), one_row_steps(emulator, stock, p)) == 0


def test_versions_differ(emulator, stock_of):
    """One exact kernel for all versions, which there cannot be: 4 bits, 16-bit types."""
    p = QuantizedProduct(4, 64, 1024, 4, "bfloat16")
    old, new = (one_row_steps(emulator, stock_of(version), p) for version in ("0.32.2", "0.32.4"))
    assert differing(old, new) > 0
    assert differing(run(emulator, Rows("0.32.4"), p), old) > 0


def test_tiles_are_not_exact(emulator, stock):
    """The guard trusts what a kernel says of itself."""
    p = QuantizedProduct(4, 64, 1024)
    assert not Tiles.exact and Rows.exact
    assert differing(run(emulator, Tiles(), p), one_row_steps(emulator, stock, p)) > 0
