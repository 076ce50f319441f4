"""MLX's attention, rotary positions, norms and elementwise kernels: right, and the same by rows."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from .arrays import differing
from .stock.attention import Plan, attend, plan
from .stock.rowwise import argmax, dequantize, elementwise, rms_norm, rope

pytestmark = pytest.mark.slow
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def attention_in_float64(queries, keys, values, length):
    rows, size = queries.shape[1:]
    out = np.zeros(queries.shape)
    for head, q in enumerate(queries.astype(np.float64)):
        kv = head * len(keys) // len(queries)
        for row in range(rows):
            seen = length - rows + row + 1
            scores = keys[kv, :seen].astype(np.float64) @ q[row] * size**-0.5
            weights = np.exp(scores - scores.max())
            out[head, row] = weights @ values[kv, :seen] / weights.sum()
    return out


@pytest.mark.parametrize("chosen", [Plan(1), Plan(2, 64), Plan(2, 128)])
@pytest.mark.parametrize("size", [64, 128])
def test_attention_is_right_and_the_same_by_rows(emulator, stock, size, chosen):
    """Attention of a block of tokens that differs from that of one token after the other."""
    queries, keys, values = normal(4, 3, size), normal(2, 200, size), normal(2, 200, size)
    length = 150
    together = attend(emulator, stock, chosen, queries, keys, values, length)
    exact = attention_in_float64(queries, keys, values, length)
    assert np.abs(together - exact).max() < 1e-5
    for row in range(3):
        one = np.ascontiguousarray(queries[:, row : row + 1])
        alone = attend(emulator, stock, chosen, one, keys, values, length - 2 + row)
        assert differing(alone[:, 0].copy(), together[:, row].copy()) == 0


def test_the_number_of_blocks_changes_the_bits(emulator, stock):
    """Why rows may share a call only where MLX cuts the keys alike for one row and for all."""
    queries, keys, values = normal(4, 1, 64), normal(2, 300, 64), normal(2, 300, 64)
    few, many = (
        attend(emulator, stock, Plan(2, blocks), queries, keys, values, 300) for blocks in (64, 128)
    )
    assert differing(few, many) > 0
    assert plan("s", 2000, 4, 2, 1) == Plan(2, 64) != plan("s", 2000, 4, 2, 4)
    assert plan("s", 1023, 4, 2, 1) == Plan(1) == plan("g", 2000, 4, 2, 8)


def test_rope_is_right_and_the_same_by_rows(emulator, stock):
    """`rope_single` and `rope`, between which MLX chooses by the number of rows."""
    x = normal(3, 6, 64)
    together = rope(emulator, stock, x, 1e6, 500)
    expected = mx.fast.rope(
        mx.array(x.transpose(1, 0, 2))[None], 64, traditional=False, base=1e6, scale=1.0, offset=500
    )[0]
    assert np.abs(together - np.array(expected)).max() < 1e-3
    for row in range(3):
        alone = rope(emulator, stock, x[row : row + 1], 1e6, 500 + row)
        assert differing(alone[:, 0].copy(), together[:, row].copy()) == 0


def test_rms_norm_is_right_and_the_same_by_rows(emulator, stock):
    """A norm whose threadgroup depends on the number of rows."""
    x, weight = normal(3, 200), normal(200)
    together = rms_norm(emulator, stock, x, weight, 1e-6)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6) * weight
    assert np.abs(together - expected).max() < 1e-5
    for row in range(3):
        assert (
            differing(
                rms_norm(emulator, stock, x[row : row + 1], weight, 1e-6),
                together[row : row + 1].copy(),
            )
            == 0
        )


def test_elementwise_kernels_are_right(emulator, stock):
    """Additions, products and the sigmoid of which a layer is made besides."""
    a, b = normal(3, 70), normal(3, 70)
    assert np.array_equal(elementwise(emulator, stock, "Add", a, b), a + b)
    assert np.array_equal(elementwise(emulator, stock, "Multiply", a, b), a * b)
    sigmoid = elementwise(emulator, stock, "Sigmoid", a)
    assert np.abs(sigmoid - 1 / (1 + np.exp(-a.astype(np.float64)))).max() < 1e-6
    logits = normal(3, 300)
    assert argmax(emulator, stock, logits).tolist() == logits.argmax(-1).tolist()


def test_dequantize_is_right(emulator, stock):
    """Rows of a quantized embedding."""
    packed, scales, biases = mx.quantize(mx.array(normal(5, 128)), group_size=32, bits=4)
    expected = mx.dequantize(packed, scales, biases, group_size=32, bits=4)
    parts = [np.array(a) for a in (packed, scales, biases)]
    found = dequantize(emulator, stock, *parts, group_size=32)
    assert np.abs(found - np.array(expected)).max() < 1e-6
