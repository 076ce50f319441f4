"""How MLX computes few rows of linears that are not quantized."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from .arrays import TOLERANCE, differing, host, values
from .stock.dense import gemv, gemv_wide

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("rows", [3, 8])
def test_dense_products_are_right(emulator, stock, rows, dtype):
    """The two kernels between which MLX chooses by the number of rows."""
    x, matrix = random_product(rows, dtype)
    exact = values(x) @ values(matrix).T
    for kernel in (gemv, gemv_wide):
        y = values(kernel(emulator, stock, x, matrix))
        assert np.abs(y - exact).max() < TOLERANCE[dtype] * np.abs(exact).max()


def test_few_rows_of_dense_linears_are_not_exact(emulator, stock):
    """A claim of exactness for models whose linears are not all quantized.

    Few bits differ: one result of 192 here, in float16; in bfloat16 none of them.
    """
    x, matrix = random_product(3, "float16")
    alone, together = (kernel(emulator, stock, x, matrix) for kernel in (gemv, gemv_wide))
    assert 0 < differing(alone, together) < 10


def random_product(rows: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    keys = mx.random.split(mx.random.key(1))
    kind = {"float16": mx.float16, "bfloat16": mx.bfloat16}[dtype]
    x = mx.random.normal((rows, 512), key=keys[0])
    matrix = mx.random.normal((64, 512), key=keys[1]) * 0.1
    return host(x.astype(kind)), host(matrix.astype(kind))
