"""Our kernels in the emulator, from the text that Apple's compiler would read, against float64."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from helpers.slow_cases import some_slow

from dspark_mlx.kernels.linears import Applied, quantized_linears
from dspark_mlx.kernels.metal import call
from dspark_mlx.kernels.metal.limits import reference
from dspark_mlx.kernels.metal.rows import ONE_ROW, Rows, one_row_sums
from dspark_mlx.kernels.metal.tiles import Tiles

from .arrays import TOLERANCE, QuantizedProduct, differing
from .emulator.program import Order
from .own import emulated_metal_kernel, product_of, run, weights_read

KERNELS = {"rows": Rows("0.32.4"), "tiles": Tiles()}
# dtype, bits, group, rows, outputs, inputs: each of every dimension, N and K that no tile divides.
CASES = [
    ("float32", 4, 64, 5, 77, 320),
    ("float32", 8, 32, 8, 64, 512),
    ("float32", 4, 128, 11, 40, 1024),
    ("float32", 8, 64, 2, 9, 192),
    ("float32", 4, 32, 1, 33, 96),
    ("float32", 8, 128, 16, 24, 256),
    ("float16", 4, 64, 8, 96, 512),
    ("float16", 8, 64, 3, 20, 320),
    ("bfloat16", 4, 32, 16, 17, 512),
    ("bfloat16", 8, 128, 7, 64, 384),
]


@pytest.mark.parametrize("case", some_slow(CASES, CASES[:1]))
@pytest.mark.parametrize("name", KERNELS)
def test_products_are_right(emulator, name, case):
    """A kernel that is wrong, or reads or writes where it must not, for some shape."""
    dtype, bits, group, m, n, k = case
    p = QuantizedProduct(m, n, k, bits, dtype, group)
    assert p.error(run(emulator, KERNELS[name], p)) < TOLERANCE[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [Rows("0.32.4", 2), Tiles(1), Tiles(4)], ids=lambda k: k.name)
def test_variants_are_right(emulator, kernel):
    """Launches that a race may choose and that no other test runs."""
    p = QuantizedProduct(11, 77, 320)
    y = run(emulator, kernel, p)
    assert p.error(y) < TOLERANCE["float32"]
    if kernel.exact:
        assert differing(y, run(emulator, KERNELS["rows"], p)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("m", range(1, 17))
@pytest.mark.parametrize("name", KERNELS)
def test_every_number_of_rows(emulator, name, m):
    """A number of rows that the others hide."""
    p = QuantizedProduct(m, 19, 128 if name == "tiles" else 192)
    assert p.error(run(emulator, KERNELS[name], p)) < TOLERANCE["float32"]


@pytest.mark.parametrize("bits", some_slow([4, 8], [4]))
@pytest.mark.parametrize("name", KERNELS)
def test_weights_are_read_once(emulator, name, bits):
    """What these kernels are for: no word of the matrix is loaded for a second row."""
    p = QuantizedProduct(5, 96, 320, bits)
    assert weights_read(emulator, KERNELS[name], p) == p.host["weight"].nbytes


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_lanes_in_any_order(emulator, name):
    """A result that depends on which lane runs first."""
    p = QuantizedProduct(3, 21, 320)
    first = run(emulator, KERNELS[name], p)
    for seed in (7, 8, 9):
        assert differing(run(emulator, KERNELS[name], p, order=Order(seed=seed)), first) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_arrays_that_begin_anywhere(emulator, name):
    """A wide load that a slice's first element does not allow."""
    p = QuantizedProduct(3, 21, 320, 4, "bfloat16")
    offsets = {"w": 4, "scales": 2, "biases": 2, "x": 2}
    assert p.error(run(emulator, KERNELS[name], p, offsets=offsets)) < TOLERANCE["bfloat16"]


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_a_row_does_not_depend_on_the_others(emulator, name):
    """A token whose logits change with how many are verified beside it."""
    p = QuantizedProduct(11, 32, 512)
    parts = [p.part(0, 1), p.part(1, 4), p.part(4, 11)]
    separate = np.concatenate([run(emulator, KERNELS[name], part) for part in parts])
    assert differing(run(emulator, KERNELS[name], p), separate) == 0


@pytest.mark.parametrize("bits", some_slow([4, 8], [4]))
def test_rows_do_what_the_numpy_reference_does(emulator, bits):
    """The order of additions, stated a second time; nothing fused, lanes from the first."""
    p = QuantizedProduct(3, 19, 320, bits)
    a = p.arrays
    lanes = one_row_sums(
        a["x"], a["weight"], a["scales"], a["biases"], product_of(p), version="0.32.4"
    )
    expected = lanes[..., 0]
    for lane in range(1, 32):
        expected = expected + lanes[..., lane]
    y = run(emulator, KERNELS["rows"], p, fused=False, order=Order(simd=1))
    assert differing(y, expected) == 0


@pytest.mark.parametrize("name", KERNELS)
def test_the_call_gives_what_mlx_gives(emulator, name, monkeypatch):
    """The package's own call, answered by the emulator: names, shapes, template, launch."""
    monkeypatch.setattr(
        call, "_compiled", lambda _, source: emulated_metal_kernel(emulator, source)
    )
    p = QuantizedProduct(5, 77, 320)
    a = p.arrays
    product = product_of(p)
    y = KERNELS[name](a["x"][None], a["weight"], a["scales"], a["biases"], product)
    assert y.dtype == mx.float32 and y.shape == (1, 5, 77)
    y = y[0]
    stock = mx.quantized_matmul(a["x"], a["weight"], a["scales"], a["biases"])
    assert mx.abs(y - stock).max() < 1e-5 * mx.abs(stock).max()
    wide = reference(a["x"], a["weight"], a["scales"], a["biases"], product)
    assert np.abs(np.array(y) - wide).max() < 1e-5 * np.abs(wide).max()


def test_every_known_version_has_its_own_lanes():
    """One version's rule taken for another's."""
    fits = product_of(QuantizedProduct(2, 13, 512))
    assert ONE_ROW["0.32.4"].values_a_lane(fits) == 16
    assert ONE_ROW["0.32.2"].values_a_lane(fits) == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_take_the_place_of_a_networks_products(emulator, name, monkeypatch):
    """A kernel that is right and cannot be applied: biases, output matrices, leading axes."""
    calls = []

    def compiled(_, source):
        calls.append(name)
        return emulated_metal_kernel(emulator, source)

    monkeypatch.setattr(call, "_compiled", compiled)
    network = nn.Sequential(nn.Linear(192, 64, bias=True), nn.Linear(64, 192, bias=False))
    nn.quantize(network, group_size=64, bits=4)
    x = mx.random.normal((1, 3, 192), key=mx.random.key(0))
    expected = network(x)
    kernel = KERNELS[name]
    able = [
        linear for linear in quantized_linears(network) if kernel.why_not(linear.product(3)) is None
    ]
    applied = Applied(network, {linear: {3: kernel} for linear in able})
    found = network(x)
    applied.close()
    assert len(calls) == len(able) == {"rows": 1, "tiles": 2}[name]
    assert mx.abs(found - expected).max() < 1e-5 * mx.abs(expected).max()
    assert mx.array_equal(network(x), expected)
