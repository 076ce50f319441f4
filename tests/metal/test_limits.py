"""What the Metal kernels refuse, with a reason."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import pytest

from dspark_mlx.kernels.base import Product
from dspark_mlx.kernels.metal.limits import reference
from dspark_mlx.kernels.metal.rows import Rows
from dspark_mlx.kernels.metal.tiles import Tiles

from .arrays import QuantizedProduct
from .own import product_of

GOOD = Product(8, 4096, 4096, 4, 64, mx.bfloat16)


@pytest.mark.parametrize("kernel", [Rows("0.32.4"), Tiles()])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bits": 6}, "6 bits"),
        ({"group_size": 16}, "groups of 16"),
        ({"rows": 17}, "17 rows"),
        ({"mode": "mxfp4"}, "mxfp4 weights"),
        ({"inputs": 100}, "100 columns in groups of 64"),
        ({"dtype": mx.float64}, "type mlx.core.float64"),
    ],
)
def test_products_beyond_the_limits_are_refused(kernel, change, reason):
    """A kernel that is tried on what it was not written for."""
    assert kernel.why_not(GOOD) is None
    assert kernel.why_not(replace(GOOD, **change)) == reason


def test_rows_are_exact_for_known_versions_alone():
    """A new MLX whose one-row step adds in another order, taken for an old one."""
    assert Rows("0.99.0").why_not(GOOD) == "one-row steps of MLX 0.99.0 are not known"
    assert Rows("0.32.2").why_not(GOOD) is None


@pytest.mark.parametrize("inputs", [64, 128])
def test_rows_leave_quad_kernels_to_mlx(inputs):
    """One row of few columns, for which MLX has a kernel that adds otherwise."""
    reason = f"MLX has a kernel of its own for one row of {inputs} columns"
    assert Rows("0.32.4").why_not(replace(GOOD, inputs=inputs)) == reason
    assert Tiles().why_not(replace(GOOD, inputs=inputs)) is None


def test_the_reference_is_the_product():
    """A reference that agrees with a kernel's own mistake."""
    p = QuantizedProduct(3, 40, 96, 8, group_size=32)
    a = p.arrays
    weight = mx.dequantize(a["weight"], a["scales"], a["biases"], group_size=32, bits=8)
    expected = a["x"] @ weight.T
    found = reference(a["x"], a["weight"], a["scales"], a["biases"], product_of(p))
    assert mx.abs(mx.array(found.astype("float32")) - expected).max() < 1e-4
