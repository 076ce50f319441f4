"""The quantized matrices of a network, by shape, and kernels in the place of their products.

A module keeps its weights and changes its class, as tapped layers do: MLX's own classes stay as
they are, and another model in the process is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn

from .base import Product

Call: TypeAlias = Callable[[mx.array, mx.array, mx.array, mx.array, Product], mx.array]
"""Computes a product, as `base.Kernel` does."""


@dataclass(frozen=True)
class Linear:
    """What the matrices of one shape have in common; see `base.Product` for the fields."""

    outputs: int
    inputs: int
    bits: int
    group_size: int
    dtype: mx.Dtype
    mode: str

    def product(self, rows: int) -> Product:
        """The product of so many rows with such a matrix."""
        about = self.bits, self.group_size, self.dtype, self.mode
        return Product(rows, self.outputs, self.inputs, *about)


def quantized_linears(network: nn.Module) -> dict[Linear, list[Any]]:
    """The modules that multiply by a quantized matrix, by shape.

    They are linear layers, and embeddings, which serve as output matrices too. Matrices of experts
    are not among them: their products are gathered, which is another operation.
    """
    found: dict[Linear, list[Any]] = {}
    for _, module in network.named_modules():
        if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
            found.setdefault(linear_of(module), []).append(module)
    return found


def linear_of(module: Any) -> Linear:
    """The shape of a module that multiplies by a quantized matrix."""
    outputs, words = module.weight.shape
    inputs = words * 32 // module.bits
    mode = getattr(module, "mode", "affine")
    return Linear(outputs, inputs, module.bits, module.group_size, module.scales.dtype, mode)


def stock(x: mx.array, weight: mx.array, scales: mx.array, biases: Any, product: Product) -> Any:
    """MLX's own product, with a kernel's arguments."""
    about = product.group_size, product.bits, product.mode
    return mx.quantized_matmul(x, weight, scales, biases, True, *about)


def compute(call: Call, module: Any, x: mx.array) -> mx.array:
    """A module's product by `call`, without its bias."""
    product = linear_of(module).product(x.size // x.shape[-1])
    return call(x, module.weight, module.scales, module.get("biases"), product)


class Applied:
    """Calls in the place of a network's products, until `close`.

    Args:
        network: the network whose modules change.
        calls: for each shape the calls by number of rows; other numbers stay MLX's.
    """

    def __init__(self, network: nn.Module, calls: Mapping[Linear, Mapping[int, Call]]) -> None:
        self._changed: list[tuple[Any, type]] = []
        made: dict[tuple[type, Linear], type] = {}
        for linear, modules in quantized_linears(network).items():
            by_rows = {
                rows: (call, linear.product(rows)) for rows, call in calls.get(linear, {}).items()
            }
            for module in modules if by_rows else ():
                original = type(module)
                changed = made.setdefault((original, linear), _changed_class(original, by_rows))
                self._changed.append((module, original))
                module.__class__ = changed

    def close(self) -> None:
        """Give every module its own class again."""
        while self._changed:
            module, original = self._changed.pop()
            module.__class__ = original


def _changed_class(original: Any, by_rows: Mapping[int, tuple[Call, Product]]) -> type:
    name = "as_linear" if issubclass(original, nn.QuantizedEmbedding) else "__call__"
    own = getattr(original, name)

    def changed_call(self: Any, x: mx.array) -> mx.array:
        chosen = by_rows.get(x.size // x.shape[-1])
        if chosen is None or x.dtype != chosen[1].dtype:
            return own(self, x)
        call, product = chosen
        y = call(x, self["weight"], self["scales"], self["biases"], product)
        return y + self["bias"] if "bias" in self else y

    names = {name: changed_call, "__module__": original.__module__}
    return type(original.__name__, (original,), names)
