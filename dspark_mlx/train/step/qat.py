"""Quantisation-aware training: the drafter is judged, and learns, as it will be stored.

Weights are rounded in every step, and the gradient of a rounded weight moves the one that it was
rounded from (the straight-through estimator; Bengio et al., 2013).
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from ...checkpoint.quantization import Quantization


def fake_quantized(
    weights: Mapping[str, mx.array], quantization: Quantization | None
) -> dict[str, mx.array]:
    """Weights as quantising and dequantising leaves them, differentiable as if nothing was done.

    Args:
        weights: of the drafter, float32, by canonical name.
        quantization: which matrices will be quantised, and how; None changes nothing.
    """
    if quantization is None:
        return dict(weights)
    return {name: _rounded(name, value, quantization) for name, value in weights.items()}


def _rounded(name: str, value: mx.array, quantization: Quantization) -> mx.array:
    chosen = quantization.of_tensor(name, value.ndim)
    if chosen is None:
        return value
    bits, group_size = chosen
    held = mx.stop_gradient(value)
    packed, scales, biases = mx.quantize(held, group_size=group_size, bits=bits)
    near = mx.dequantize(packed, scales, biases, group_size=group_size, bits=bits)
    return value + (near - held)
