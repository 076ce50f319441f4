"""How MLX computes the few rows of a block in MoE targets."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from .arrays import differing, host
from .stock.gathered import gather_qmv

pytestmark = pytest.mark.slow


def test_rows_are_exact_and_read_weights_for_each_pair(emulator, stock):
    """Few tokens of a MoE layer have the bits of one-token steps with MLX's own kernel.

    It reads an expert's weights again for each token that chose it, which no kernel here avoids.
    """
    outputs, inputs, group = 16, 512, 32
    keys = mx.random.split(mx.random.key(0))
    weight = mx.random.normal((6, outputs, inputs), key=keys[0]) * 0.05
    quantized = mx.quantize(weight, group_size=group, bits=4)
    packed, scales, biases = (host(a) for a in quantized)
    x = host(mx.random.normal((3, inputs), key=keys[1]))
    experts = np.array([[0, 4], [4, 5], [0, 4]], np.uint32)
    together, read = gather_qmv(emulator, stock, x, (packed, scales, biases), experts, group)
    wide = host(mx.dequantize(*quantized, group_size=group, bits=4)).astype(np.float64)
    expected = np.einsum("tk,tenk->ten", x, wide[experts])
    assert np.abs(together - expected).max() < 1e-5 * np.abs(expected).max()
    for token in range(3):
        one = slice(token, token + 1)
        alone, _ = gather_qmv(
            emulator, stock, x[one], (packed, scales, biases), experts[one].copy(), group
        )
        assert differing(alone, together[one].copy()) == 0
    assert read == experts.size * packed[0].nbytes
