"""Faults put into our kernels, each of which the emulator must find while the kernel runs."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from helpers.slow_cases import some_slow

from dspark_mlx.kernels.metal.rows import Rows
from dspark_mlx.kernels.metal.tiles import Tiles

from .arrays import TOLERANCE, QuantizedProduct, differing
from .emulator.program import EmulationError
from .own import run

KERNELS = {"rows": Rows("0.32.4"), "tiles": Tiles()}
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


@dataclass(frozen=True)
class Fault:
    """A change of a kernel's text, and what the emulator says to it."""

    kernel: str
    old: str
    new: str
    found: str
    offsets: dict[str, int] = field(default_factory=dict)


FAULTS = {
    "no barrier": Fault("tiles", BARRIER, "", "nobody has written|race on part"),
    "barrier for other memory": Fault(
        "tiles", "mem_flags::mem_threadgroup", "mem_flags::mem_device", "race on part"
    ),
    "barrier that a lane misses": Fault(
        "tiles", BARRIER, f"if (lane == 3) {{ return; }} {BARRIER}", "returned"
    ),
    "barrier that a lane passes by": Fault(
        "tiles", BARRIER, f"if (lane != 3) {{ {BARRIER} }}", "nobody has written|barrier"
    ),
    "x past its end": Fault(
        "tiles", "m < M ? float(xm[s]) : 0.0f", "float(xm[s + K])", "of x, which has|in no buffer"
    ),
    "weights past their end": Fault(
        "rows", "const int n = min(n0 + r, N - 1);", "const int n = n0 + r;", "of w, which has"
    ),
    "output past its end": Fault(
        "rows", "lane == 0 && n0 + r < N", "lane == 0", "race on y|of y, which has"
    ),
    "shared memory too small": Fault(
        "tiles", "part[SIMDS * RT * MT * 64]", "part[SIMDS * RT * MT * 64 - 64]", "of part, which"
    ),
    "too much shared memory": Fault(
        "tiles",
        "threadgroup float part[",
        "threadgroup float much[9000]; threadgroup float part[",
        "32768 is the most",
    ),
    "outputs left out": Fault(
        "rows", "lane == 0 && n0 + r < N", "lane == 0 && n0 + r < N - 3", "y was never written"
    ),
    "SIMD sum in half of the lanes": Fault(
        "rows",
        "const float t = simd_sum(total[m][r]);",
        "const float t = lane < 16 ? simd_sum(total[m][r]) : 0.0f;",
        "SIMD",
    ),
    "two SIMD-groups on one output": Fault(
        "rows",
        "(threadgroup_position_in_grid.x * SIMDS + simdgroup_index_in_threadgroup) * R",
        "(threadgroup_position_in_grid.x * SIMDS) * R",
        "race on y|never written",
    ),
    "misaligned wide load": Fault(
        "rows",
        "packed[r][i] = w[n * words_per_row + k * BITS / 32 + i];",
        "packed[r][i] = (*(const device uint2*)(w + n * words_per_row + k * BITS / 32))[i];",
        "misaligned read of 8 bytes",
        {"w": 4},
    ),
    "write to an input": Fault(
        "rows",
        "y[m * N + n0 + r] = T(t);",
        "y[m * N + n0 + r] = T(t); ((device T*)x)[m * K] = T(t);",
        "write to the input x",
    ),
}


@pytest.mark.parametrize("name", some_slow(FAULTS, ["no barrier"]))
def test_faults_are_found(emulator, name):
    """A check of the emulator that finds nothing."""
    fault = FAULTS[name]
    kernel = KERNELS[fault.kernel]
    assert fault.old in kernel.source
    p = QuantizedProduct(6, 21, 512)
    body = kernel.source.replace(fault.old, fault.new)
    with pytest.raises(EmulationError, match=fault.found):
        run(emulator, kernel, p, body=body, offsets=fault.offsets)


@pytest.mark.slow
def test_the_message_says_where(emulator):
    """A fault somewhere in a kernel of a hundred lines."""
    kernel = KERNELS["rows"]
    body = kernel.source.replace("const int n = min(n0 + r, N - 1);", "const int n = n0 + r;")
    with pytest.raises(EmulationError, match=r"kernel:\d+:\d+\)") as caught:
        run(emulator, kernel, QuantizedProduct(6, 21, 512), body=body)
    assert "threadgroup" in str(caught.value)


@pytest.mark.slow
def test_wrong_arithmetic_shows_in_float32_alone(emulator):
    """A scale wrong by 0.2 % in a fourth of the products, which bfloat16's output hides."""
    kernel = KERNELS["rows"]
    body = kernel.source.replace("0.00390625f", "0.0039f")
    wide, narrow = QuantizedProduct(4, 64, 1024), QuantizedProduct(4, 64, 1024, 4, "bfloat16")
    assert wide.error(run(emulator, kernel, wide, body=body)) > 10 * TOLERANCE["float32"]
    assert narrow.error(run(emulator, kernel, narrow, body=body)) < TOLERANCE["bfloat16"]


@pytest.mark.slow
def test_another_order_of_additions_shows_in_the_bits(emulator):
    """A kernel that is right, and not exact any more."""
    kernel = KERNELS["rows"]
    ours = "float(xm[i]) + float(xm[i + 1]) + float(xm[i + 2]) + float(xm[i + 3])"
    other = "(float(xm[i]) + float(xm[i + 1])) + (float(xm[i + 2]) + float(xm[i + 3]))"
    assert ours in kernel.source
    p = QuantizedProduct(4, 64, 1024)
    y = run(emulator, kernel, p, body=kernel.source.replace(ours, other))
    assert p.error(y) < TOLERANCE["float32"]
    assert differing(y, run(emulator, kernel, p)) > 0
