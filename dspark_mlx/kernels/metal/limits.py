"""Which products these kernels can compute, and what they should compute."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ..base import Product

MOST_ROWS = 16
BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)
DTYPES = (mx.float32, mx.float16, mx.bfloat16)


def beyond_limits(product: Product) -> str | None:
    """Why no kernel here can compute a product, in a few words; None if one may."""
    if product.mode != "affine":
        return f"{product.mode} weights"
    if product.bits not in BITS:
        return f"{product.bits} bits"
    if product.group_size not in GROUP_SIZES:
        return f"groups of {product.group_size}"
    if product.dtype not in DTYPES:
        return f"type {product.dtype}"
    if not 1 <= product.rows <= MOST_ROWS:
        return f"{product.rows} rows"
    if product.inputs % product.group_size:
        return f"{product.inputs} columns in groups of {product.group_size}"
    return None


def unpacked(weight: mx.array, product: Product) -> np.ndarray:
    """Quantized integers `[outputs, inputs]` of packed words."""
    shifts = np.arange(0, 32, product.bits, dtype=np.uint32)
    parts = (np.array(weight)[..., None] >> shifts) & np.uint32(2**product.bits - 1)
    return parts.reshape(product.outputs, product.inputs)


def reference(
    x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array, product: Product
) -> np.ndarray:
    """The product in float64, `[rows, outputs]`, by its definition: scale * q + bias."""
    wide = [np.array(a.astype(mx.float32), np.float64) for a in (x, scales, biases)]
    scale, bias = (np.repeat(a, product.group_size, axis=1) for a in wide[1:])
    return wide[0] @ (unpacked(weight, product) * scale + bias).T
