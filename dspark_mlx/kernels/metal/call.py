"""Compiles and calls the Metal kernels of products, which take the same arrays."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import mlx.core as mx

from ..base import Product


@cache
def _compiled(name: str, source: str) -> Any:
    return mx.fast.metal_kernel(
        name=name,
        input_names=["w", "scales", "biases", "x"],
        output_names=["y"],
        source=source,
    )


def call(
    name: str,
    source: str,
    launch: Mapping[str, Any],
    arrays: tuple[mx.array, mx.array, mx.array, mx.array],
    product: Product,
) -> mx.array:
    """A product, `[..., outputs]` of its type.

    Args:
        name, source: of the kernel.
        launch: its template, grid and threadgroup.
        arrays: packed weight, scales, biases, and x `[..., inputs]`, see `Kernel`.
        product: what is computed.
    """
    *_, x = arrays
    (y,) = _compiled(name, source)(
        inputs=list(arrays),
        output_shapes=[(*x.shape[:-1], product.outputs)],
        output_dtypes=[product.dtype],
        **launch,
    )
    computed: mx.array = y
    return computed
