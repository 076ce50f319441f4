"""What clang says of our kernels as Metal, and that it says something of kernels that are not."""

from __future__ import annotations

import pytest
from helpers.slow_cases import some_slow

from dspark_mlx.kernels.metal.rows import Rows
from dspark_mlx.kernels.metal.tiles import Tiles

from .arrays import QuantizedProduct
from .emulator.checks import complaints
from .own import source_of

KERNELS = {"rows": Rows("0.32.4"), "rows of 0.32.2": Rows("0.32.2"), "tiles": Tiles()}
FRAME = """template <typename T>
[[kernel]] void k(
    const device T* a [[buffer(0)]],
    device T* out [[buffer(1)]],
    const constant int* n [[buffer(2)]],
    uint lane [[thread_index_in_threadgroup]]) {
BODY
}
template [[host_name("k")]] [[kernel]] decltype(k<bfloat16_t>) k<bfloat16_t>;
"""
SOUND = (
    "threadgroup float t[32]; t[lane] = float(a[lane]); "
    "threadgroup_barrier(mem_flags::mem_threadgroup); out[lane] = T(t[31 - lane]);"
)
UNSOUND = {
    "device pointer as threadgroup": (
        "threadgroup float* p = (threadgroup float*)a; out[lane] = T(p[0]);",
        "address spaces",
    ),
    "device pointer as a plain one": ("const T* q = a; out[lane] = q[0];", "address spaces"),
    "constant as device": ("const device int* q = n; out[lane] = T(q[0]);", "address spaces"),
    "write through const": ("a[lane] = T(1);", "address spaces"),
    "float to bfloat unasked": ("out[lane] = float(a[lane]) * 2.0f;", "conversions"),
    "bfloat to half unasked": ("half h = a[lane]; out[lane] = T(float(h));", "address spaces"),
    "bfloat and a number": ("out[lane] = a[lane] + 1;", "conversions"),
    "if constexpr": ("if constexpr (sizeof(T) == 2) { out[lane] = a[lane]; }", "C++14"),
    "double": ("double d = 1; out[lane] = T(float(d));", "rules"),
    "a name that Metal lacks": ("out[lane] = T(simd_summ(float(a[lane])));", "address spaces"),
}


@pytest.mark.parametrize("name", some_slow(KERNELS, ["tiles"]))
@pytest.mark.parametrize("bits", some_slow([4, 8], [4]))
def test_our_kernels_have_a_clean_bill(emulator, name, bits):
    """A source that clang reads here and Apple's compiler refuses there."""
    for dtype in ("bfloat16",) if bits == 4 else ("float16", "float32"):
        made = source_of(KERNELS[name], QuantizedProduct(8, 64, 512, bits, dtype))
        assert complaints(emulator.toolchain, made.text) == {}


@pytest.mark.slow
def test_a_sound_kernel_passes(emulator):
    """Checks that complain of everything."""
    assert complaints(emulator.toolchain, FRAME.replace("BODY", SOUND)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", UNSOUND)
def test_unsound_kernels_are_refused(emulator, name):
    """A check that finds nothing."""
    body, kind = UNSOUND[name]
    assert kind in complaints(emulator.toolchain, FRAME.replace("BODY", body))
