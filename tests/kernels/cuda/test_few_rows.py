"""What the kernel of few rows says that it can compute, and its arithmetic where a GPU runs it."""

from __future__ import annotations

import itertools

import mlx.core as mx
import numpy as np
import pytest

from dspark_mlx.kernels import KERNELS
from dspark_mlx.kernels.base import Product, TogetherKernel
from dspark_mlx.kernels.cuda import few_rows
from dspark_mlx.kernels.guard import backend_here
from dspark_mlx.kernels.trial import run_trial

KERNEL = few_rows.KERNELS[0]
PRODUCT = Product(8, 96, 512, 4, 64, mx.bfloat16)


def test_all_sizes_are_candidates_of_their_own():
    assert {kernel.name for kernel in few_rows.KERNELS} <= set(KERNELS)
    assert len({kernel.source for kernel in few_rows.KERNELS}) == len(few_rows.KERNELS)
    assert all(kernel.why_not(PRODUCT) is None for kernel in few_rows.KERNELS)


@pytest.mark.parametrize(
    ("product", "reason"),
    [
        (Product(1, 96, 512, 4, 64, mx.bfloat16), "1 rows"),
        (Product(17, 96, 512, 4, 64, mx.bfloat16), "17 rows"),
        (Product(8, 96, 512, 6, 64, mx.bfloat16), "affine weights of 6 bits"),
        (Product(8, 96, 512, 4, 32, mx.bfloat16, "mxfp4"), "mxfp4 weights of 4 bits"),
        (Product(8, 96, 520, 4, 64, mx.bfloat16), "groups of 64 in 520 columns"),
        (Product(8, 96, 512, 4, 64, mx.float64), "x of mlx.core.float64"),
    ],
)
def test_what_it_cannot_compute_is_said(product: Product, reason: str):
    assert KERNEL.why_not(product) == reason


def test_the_text_has_no_comments():
    """Comments that MLX copies and hashes in every call."""
    assert "//" not in few_rows.SOURCE + few_rows.HEADER
    assert "mma.sync" in few_rows.HEADER


@pytest.mark.skipif(backend_here() != "cuda", reason="needs MLX's CUDA backend")
@pytest.mark.parametrize("dtype", few_rows.DTYPES, ids=str)
def test_products_of_one_launch_have_the_bits_of_their_own(dtype: mx.Dtype):
    """Blocks of one matrix that read another, or that stop short where it ends unevenly."""
    assert isinstance(KERNEL, TogetherKernel)
    for rows, bits in ((2, 4), (16, 8)):
        products = tuple(Product(rows, n, 640, bits, 64, dtype) for n in (100, 16, 33))
        assert run_trial(KERNEL, products) == ""


@pytest.mark.skipif(backend_here() != "cuda", reason="needs MLX's CUDA backend")
@pytest.mark.parametrize("dtype", few_rows.DTYPES, ids=str)
@pytest.mark.parametrize("bits", few_rows.BITS)
@pytest.mark.parametrize("kernel", few_rows.KERNELS, ids=lambda kernel: kernel.name)
def test_products_are_right_against_float64(kernel: few_rows.FewRows, bits: int, dtype: mx.Dtype):
    """bfloat16 hides errors: float32 is what counts."""
    # Every kernel compiles for some seconds.
    groups = few_rows.GROUP_SIZES if kernel is KERNEL else (64,)
    for group, rows in itertools.product(groups, (2, 8, 9, 16)):
        outputs, inputs = 100, 640
        weight = mx.random.normal((outputs, inputs)).astype(dtype)
        packed, scales, biases = mx.quantize(weight, group, bits)
        x = mx.random.normal((1, rows, inputs)).astype(dtype)
        product = Product(rows, outputs, inputs, bits, group, dtype)
        got = np.array(kernel(x, packed, scales, biases, product).astype(mx.float32))[0]
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        right = (
            np.array(x.astype(mx.float32)[0], np.float64)
            @ np.array(mx.dequantize(packed, scales, biases, group, bits), np.float64).T
        )
        error = np.abs(got - right).max() / np.abs(right).max()
        limit = {mx.float32: 1e-5, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-8}[dtype]
        assert error < limit, (dtype, bits, group, rows, error)
