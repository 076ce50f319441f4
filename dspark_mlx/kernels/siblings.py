"""Linear layers that read the same rows, such as queries, keys and values, computed by one call.

What a call costs the host does not depend on what it computes, and a round on a quick GPU waits for
the host. The first sibling that is called computes the others' outputs too, and each gives its own
when it is called with the very same array. Weights stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .base import Kernel, Product, TogetherKernel
from .linears import Applied, Linear, linear_of, quantized_linears, stock


@dataclass(frozen=True)
class Siblings:
    """Modules that are called one after another with one array.

    Attributes:
        modules: in the order of their calls.
        kernels: by number of rows what computes all of them.
    """

    modules: tuple[Any, ...]
    kernels: Mapping[int, TogetherKernel]

    def products(self, rows: int) -> tuple[Product, ...]:
        """What is computed of so many rows."""
        return tuple(linear_of(module).product(rows) for module in self.modules)


def find_siblings(
    network: nn.Module,
    rows: int,
    run: Callable[[], object],
    chosen: Mapping[Linear, Mapping[int, Kernel]],
) -> list[Siblings]:
    """The siblings whose kernels can compute them together.

    Args:
        network: the network.
        rows: rows of the forward that `run` runs.
        run: runs the network.
        chosen: for each shape the kernels by number of rows.
    """
    linears = quantized_linears(network)
    owners = {id(module.weight): module for found in linears.values() for module in found}
    calls: list[tuple[mx.array, Any]] = []

    def note(x: mx.array, weight: mx.array, *about: Any) -> mx.array:
        calls.append((x, owners[id(weight)]))
        result: mx.array = stock(x, weight, *about)
        return result

    applied = Applied(network, {linear: {rows: note} for linear in linears})
    try:
        run()
    finally:
        applied.close()
    runs = [
        tuple(module for _, module in same) for _, same in groupby(calls, lambda call: id(call[0]))
    ]
    found = (Siblings(modules, _kernels(modules, chosen)) for modules in runs if _alike(modules))
    return [siblings for siblings in found if rows in siblings.kernels]


def _alike(modules: Sequence[Any]) -> bool:
    """Whether several linear layers differ in their outputs alone."""
    if any(hasattr(module, "as_linear") for module in modules):
        return False
    forms = {(m.bits, m.group_size, m.scales.dtype, getattr(m, "mode", "")) for m in modules}
    return len(set(map(id, modules))) == len(modules) > 1 == len(forms)


def _kernels(
    modules: Sequence[Any], chosen: Mapping[Linear, Mapping[int, Kernel]]
) -> dict[int, TogetherKernel]:
    """By number of rows the kernel of the largest matrix, where each has one."""
    linears = [linear_of(module) for module in modules]
    largest = max(linears, key=lambda linear: linear.outputs)
    return {
        rows: kernel
        for rows, kernel in chosen.get(largest, {}).items()
        if isinstance(kernel, TogetherKernel)
        and all(rows in chosen.get(linear, {}) for linear in linears)
    }


class AppliedSiblings:
    """Siblings that are computed together, until `close`.

    Args:
        siblings: which; their modules change class.
    """

    def __init__(self, siblings: Iterable[Siblings]) -> None:
        self._changed: list[tuple[Any, type]] = []
        for each in siblings:
            shared = _Shared(each)
            for i, module in enumerate(each.modules):
                self._changed.append((module, type(module)))
                module.__class__ = shared.changed_class(i)

    def close(self) -> None:
        """Give every module its own class again."""
        while self._changed:
            module, original = self._changed.pop()
            module.__class__ = original


class _Shared:
    """What siblings have computed for each other."""

    def __init__(self, siblings: Siblings) -> None:
        self._modules = siblings.modules
        self._launches = {
            rows: (kernel, siblings.products(rows)) for rows, kernel in siblings.kernels.items()
        }
        self._x: mx.array | None = None
        self._ys: dict[int, mx.array] = {}

    def changed_class(self, index: int) -> type:
        """The class of the sibling with this index."""
        original: Any = type(self._modules[index])
        own, computed = original.__call__, self._computed

        def changed_call(module: Any, x: mx.array) -> mx.array:
            y = computed(index, x)
            if y is None:
                result: mx.array = own(module, x)
                return result
            return y + module["bias"] if "bias" in module else y

        names = {"__call__": changed_call, "__module__": original.__module__}
        return type(original.__name__, (original,), names)

    def _computed(self, index: int, x: mx.array) -> mx.array | None:
        """A sibling's product; None where it computes alone."""
        if index == 0:
            self._x = None
            self._ys.clear()
            kernel, products = self._launches.get(x.size // x.shape[-1], (None, ()))
            if kernel is not None and x.dtype == products[0].dtype:
                matrices = [(m["weight"], m["scales"], m["biases"]) for m in self._modules]
                self._x = x
                self._ys.update(enumerate(kernel.together(x, matrices, products)))
        if x is not self._x:
            return None
        y = self._ys.pop(index, None)
        if not self._ys:
            self._x = None
        return y
