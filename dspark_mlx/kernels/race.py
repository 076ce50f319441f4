"""Whether a kernel is right on a model's own weights, and quicker than MLX's product.

Times are those of chains in which every product depends on the one before it, over the model's
matrices of one shape: independent products overlap, and one matrix alone stays in a cache, which
both flatter kernels that lose in a model.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import mlx.core as mx
import numpy as np

from .base import Kernel
from .linears import Call, compute, stock

MARGIN = 0.95
"""A kernel takes at most this part of MLX's time, or it is not used."""

TURNS, _MORE = 7, 10
_SHORTEST, _LONGEST = 8, 24
_PIECE = 4

ROUNDING = {mx.bfloat16: 2.0**-8, mx.float16: 2.0**-11, mx.float32: 1e-5}
"""One rounding of a result, as a part of its largest value; of float32 many, those of sums."""


def why_wrong(kernel: Kernel, modules: Sequence[Any], xs: Sequence[mx.array]) -> str | None:
    """What is wrong with a kernel's numbers on some modules' weights; None where nothing is.

    The error against float32 may be MLX's own and one rounding of the result. An exact kernel's
    rows have the bits of MLX's products of each row alone.

    Args:
        kernel: the kernel.
        modules: all modules of one shape.
        xs: an input `[rows, inputs]` for each module.
    """
    for i, (module, x) in enumerate(zip(modules, xs, strict=True)):
        # Values far from the recorded ones, of another size in each row.
        sizes = mx.power(2.0, mx.arange(x.shape[0]) % 7 - 3)[:, None].astype(x.dtype)
        for what, given in (("recorded", x), ("extreme", (x[:, ::-1] * sizes).astype(x.dtype))):
            reason = _why_wrong(kernel, module, given)
            if reason is not None:
                return f"{reason}, on matrix {i} of {len(modules)}, {what} input"
    return None


def _why_wrong(kernel: Kernel, module: Any, x: mx.array) -> str | None:
    got = compute(kernel, module, x)
    if got.shape != (x.shape[0], module.weight.shape[0]) or got.dtype != x.dtype:
        return f"gives {got.dtype} {list(got.shape)}"
    if kernel.exact:
        single = [compute(stock, module, x[i : i + 1]) for i in range(x.shape[0])]
        if not mx.array_equal(got, mx.concatenate(single)).item():
            return "has other bits than one row at a time"
        return None
    right = _in_float32(module, x)
    error = largest(got.astype(mx.float32) - right)
    allowed = largest(compute(stock, module, x).astype(mx.float32) - right)
    limit = allowed + ROUNDING[x.dtype] * largest(right)
    if not error <= limit:  # NaN is not
        return f"is off by {error:.3g} where {limit:.3g} is allowed"
    return None


def largest(x: mx.array) -> float:
    """The largest magnitude in an array."""
    return float(np.array(mx.abs(x).max()))


def _in_float32(module: Any, x: mx.array) -> mx.array:
    """The product in float32, a few rows at a time, which no backend computes in less."""
    scales, biases = (module[name].astype(mx.float32) for name in ("scales", "biases"))
    rows = x.astype(mx.float32)
    pieces = [
        mx.quantized_matmul(
            rows[i : i + _PIECE],
            module.weight,
            scales,
            biases,
            group_size=module.group_size,
            bits=module.bits,
        )
        for i in range(0, rows.shape[0], _PIECE)
    ]
    return mx.concatenate(pieces)


def chain_seconds(
    call: Call, modules: Sequence[Any], x: mx.array, clock: Callable[[], float] = perf_counter
) -> float:
    """Seconds of one product in a chain of dependent ones."""
    count = min(max(len(modules), _SHORTEST), _LONGEST)
    mx.eval(x)
    started = clock()
    for module in itertools.islice(itertools.cycle(modules), count):
        x = x + 1e-6 * compute(call, module, x)[:, :1]
    mx.eval(x)
    return (clock() - started) / count


def medians(
    timed: Mapping[str, Callable[[], float]], turns: int = TURNS, seconds: float = 0.0
) -> tuple[dict[str, float], dict[str, bool]]:
    """Times of several things that take turns, the first of which is MLX's.

    A machine that grows hot or is busy for a while slows all of them alike. One unmeasured turn
    warms them up.

    Args:
        timed: what to time, by name; gives seconds.
        turns: the fewest turns.
        seconds: more turns follow, up to `_MORE` times as many, until all took so long: where the
            host is what limits, single turns scatter by more than what is to be seen.

    Returns:
        Median milliseconds by name, and whether each is quicker than the first by the margin: in
        the median time, and in the median of what each turn gives.
    """
    names = list(timed)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(_MORE * turns + 1):
        if turn > turns and sum(map(sum, taken.values())) >= seconds:
            break
        for name in names:
            once = timed[name]()
            if turn:
                taken[name].append(once)
    times = {name: 1000 * statistics.median(each) for name, each in taken.items()}
    own = taken[names[0]]
    wins = {}
    for name in names[1:]:
        ratio = statistics.median(a / b for a, b in zip(taken[name], own, strict=True))
        wins[name] = max(ratio, times[name] / times[names[0]]) <= MARGIN
    return times, wins


def timed_products(
    kernels: Sequence[Kernel], modules: Sequence[Any], x: mx.array, clock: Callable[[], float]
) -> tuple[dict[str, float], dict[str, bool]]:
    """Times of MLX's product, named "stock", and of kernels; see `medians`."""
    calls: dict[str, Call] = {"stock": stock, **{kernel.name: kernel for kernel in kernels}}

    def timed(call: Call) -> Callable[[], float]:
        return lambda: chain_seconds(call, modules, x, clock)

    return medians({name: timed(call) for name, call in calls.items()})
