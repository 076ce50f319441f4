"""Tries kernels in a process of its own, which may crash, hang or be killed by a driver.

As a module it is that process: it reads one JSON object with the trials, evaluates each on random
numbers, and prints one line for each that ran.
"""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeAlias

import mlx.core as mx

from .attention import Heads
from .base import Matrix, Product

Task: TypeAlias = Product | tuple[Product, ...] | Heads
"""A product, several with one x, or an attention."""
Trial: TypeAlias = tuple[str, Task]
"""A kernel's name, and what it should compute."""

REGISTRY = "dspark_mlx.kernels"
SECONDS = 60.0
"""Seconds that one process gets for all that it tries; compiling takes one or two each."""

_OUTPUTS = 4096
_ERRORS = (RuntimeError, ValueError, TypeError, OSError, MemoryError, AttributeError, LookupError)


def try_kernels(
    trials: Sequence[Trial], registry: str = REGISTRY, seconds: float = SECONDS
) -> dict[Trial, str]:
    """Why trials failed; those that are left out have compiled and run.

    After a crash or a time-out a new process goes on behind the trial that caused it.

    Args:
        trials: what to try.
        registry: module whose `KERNELS` and `ATTENTIONS` have the kernels.
        seconds: time that a process gets.
    """
    failed: dict[Trial, str] = {}
    left = list(trials)
    while left:
        lines, end = _run(left, registry, seconds)
        for trial, line in zip(left, lines, strict=False):
            if line:
                failed[trial] = line
        left = left[len(lines) :]
        if left:
            failed[left.pop(0)] = end
    return failed


def _run(trials: Sequence[Trial], registry: str, seconds: float) -> tuple[list[str], str]:
    """One line for each trial that ended, "" or an error, and how the process ended."""
    asked = {"registry": registry, "trials": [[name, _plain(product)] for name, product in trials]}
    # The package has imported this module already, which `-m` would warn of.
    command = [sys.executable, "-W", "ignore::RuntimeWarning:runpy", "-m", __name__]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            out, err = process.communicate(json.dumps(asked), timeout=seconds)
            end = _ended(process.returncode, err)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            end = f"did not end in {seconds:.0f} s"
    lines = [line[1:] for line in out.splitlines() if line.startswith("=")]
    return lines[: len(trials)], end


def _ended(status: int, err: str) -> str:
    if status < 0:
        return f"ended its process: {signal.Signals(-status).name}"
    last = err.strip().splitlines()
    return f"ended its process with status {status}: {last[-1][:200] if last else 'no message'}"


def _plain(task: Task) -> Any:
    if isinstance(task, tuple):
        return [_plain(product) for product in task]
    about = {field.name: getattr(task, field.name) for field in fields(task)}
    return about | {"dtype": str(task.dtype).removeprefix("mlx.core.")}


def _task(about: Any) -> Any:
    if isinstance(about, list):
        return tuple(map(_task, about))
    kind = Heads if "heads" in about else Product
    return kind(**{**about, "dtype": getattr(mx, about["dtype"])})


def run_trial(kernel: Any, task: Task) -> str:
    """What goes wrong when a kernel computes with random numbers; "" if nothing does."""

    def check() -> str | None:
        if isinstance(task, tuple):
            return _why_wrong_together(kernel, tuple(map(_smaller, task)))
        if isinstance(task, Heads):
            keys = task.rows + 9
            q, k, v = (mx.concatenate([array, array]) for array in task.random(keys))
            y = kernel(q, k, v, 1.0, mx.array([keys, keys - 5], mx.int32))
        else:
            product = _smaller(task)
            y = kernel(_random_rows(product), *_random_matrix(product), product)
        return None if mx.isfinite(y).all().item() else "gives numbers that are not finite"

    return attempt(check) or ""


def _why_wrong_together(kernel: Any, products: tuple[Product, ...]) -> str | None:
    x, matrices = _random_rows(products[0]), [_random_matrix(product) for product in products]
    ys = kernel.together(x, matrices, products)
    for i, (y, matrix, product) in enumerate(zip(ys, matrices, products, strict=True)):
        if not mx.array_equal(y, kernel(x, *matrix, product)).item():
            return f"has other bits in product {i + 1} of {len(products)} together"
    return None


def _smaller(product: Product) -> Product:
    """A large matrix of a vocabulary compiles and runs as a smaller one with as uneven an end."""
    return replace(product, outputs=min(product.outputs, _OUTPUTS + product.outputs % _OUTPUTS))


def _random_rows(product: Product) -> mx.array:
    return mx.random.normal((product.rows, product.inputs)).astype(product.dtype)


def _random_matrix(product: Product) -> Matrix:
    matrix = mx.random.normal((product.outputs, product.inputs)).astype(product.dtype)
    weight, scales, biases = mx.quantize(matrix, product.group_size, product.bits)
    return weight, scales, biases


def attempt(check: Callable[[], str | None]) -> str | None:
    """What a check of a kernel finds, or the error that it ends with."""
    try:
        return check()
    except _ERRORS as error:
        words = " ".join(str(error).split())
        return f"{type(error).__name__}: {words[:200]}"


def main(asked: Mapping[str, Any]) -> None:
    """Run the trials of `try_kernels`, and print a line for each."""
    registry = importlib.import_module(asked["registry"])
    kernels = {**registry.KERNELS, **registry.ATTENTIONS}
    for name, about in asked["trials"]:
        print("=" + run_trial(kernels[name], _task(about)), flush=True)


if __name__ == "__main__":
    main(json.load(sys.stdin))
