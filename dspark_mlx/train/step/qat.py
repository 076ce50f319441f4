"""Quantisation-aware training: the drafter is trained and evaluated as it will be stored.

Weights are quantised and dequantised in every step. The gradient of the result is applied to the
weight itself (the straight-through estimator; Bengio et al., 2013).
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from ...checkpoint.quantization import Quantization


def fake_quantized(
    weights: Mapping[str, mx.array], quantization: Quantization | None
) -> dict[str, mx.array]:
    """The weights after quantising and dequantising; gradients pass as if nothing was done.

    Args:
        weights: weights of the drafter, float32, by canonical name.
        quantization: how matrices will be quantised; None leaves all weights as they are.
    """
    if quantization is None:
        return dict(weights)
    return {name: _fake_quantized(name, value, quantization) for name, value in weights.items()}


def _fake_quantized(name: str, value: mx.array, quantization: Quantization) -> mx.array:
    chosen = quantization.of_tensor(name, value.ndim)
    if chosen is None:
        return value
    bits, group_size = chosen
    constant = mx.stop_gradient(value)
    packed, scales, biases = mx.quantize(constant, group_size=group_size, bits=bits)
    dequantized = mx.dequantize(packed, scales, biases, group_size=group_size, bits=bits)
    return value + (dequantized - constant)
