"""Verify forwards in which every row is computed as a plain step computes it.

MLX has other kernels for several rows than for one, which add in another order. Here the products
and the attention of a network run row by row, or by what gives the same bits, while a verify
forward asks for it; at all other times every module does what its own class does. Modules change
class until `close`, as tapped layers do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.models.base import scaled_dot_product_attention

from ..kernels import Kernel
from ..kernels.attention import ReplacedAttention
from ..kernels.linears import linear_of

Form: TypeAlias = tuple[Any, ...]
"""What modules have in common whose products MLX computes in one way."""

AtOnce: TypeAlias = Mapping[int, Kernel | None]
"""By number of rows what computes them at once with the bits of single ones: a kernel, or None for
MLX's own product. Rows in other numbers are computed one by one."""


def form_of(module: Any) -> Form:
    """The form of a module that multiplies by a matrix."""
    quantized = (getattr(module, name, None) for name in ("bits", "group_size", "mode"))
    arrays = (module.get(name) for name in ("weight", "scales", "bias"))
    return (*quantized, *(None if a is None else (a.shape, a.dtype) for a in arrays))


class RowByRow:
    """Row by row what a network multiplies and attends to, in the blocks of `of`.

    Args:
        network: the network whose modules change.
        linears: its modules that multiply rows by a matrix; an embedding among them is the output
            matrix.
        at_once: for each form what need not run row by row.

    Attributes:
        attached: whether the modules' classes are changed.
        attended: attentions that ran row by row in the newest block.
    """

    def __init__(
        self, network: nn.Module, linears: Sequence[Any], at_once: Mapping[Form, AtOnce]
    ) -> None:
        self.attached = False
        self.attended = 0
        self._network, self._linears, self._at_once = network, linears, at_once
        self._rows = 1
        self._changed: list[tuple[Any, type]] = []
        self._attention: ReplacedAttention | None = None

    def attach(self) -> None:
        """Change the classes."""
        made: dict[tuple[type, Form], type] = {}
        for module in self._linears:
            original, form = type(module), form_of(module)
            if (original, form) not in made:
                made[original, form] = self._changed_class(original, self._at_once.get(form, {}))
            self._changed.append((module, original))
            module.__class__ = made[original, form]
        self._attention = ReplacedAttention(self._network, self._attend)
        self.attached = True

    def close(self) -> None:
        """Give every module its own class again."""
        while self._changed:
            module, original = self._changed.pop()
            module.__class__ = original
        if self._attention is not None:
            self._attention.close()
        self.attached = False

    @contextlib.contextmanager
    def of(self, rows: int) -> Iterator[None]:
        """Forwards in the block have so many rows, each computed as if it were alone."""
        self._rows, self.attended = rows, 0
        try:
            yield
        finally:
            self._rows = 1

    def _changed_class(self, original: Any, at_once: AtOnce) -> type:
        name = "as_linear" if hasattr(original, "as_linear") else "__call__"
        own, owner = getattr(original, name), self

        def changed_call(module: Any, x: mx.array) -> mx.array:
            rows = owner._rows
            if rows == 1:
                return own(module, x)
            axis = next((i for i, n in enumerate(x.shape[:-1]) if n == rows), None)
            if axis is None:
                return own(module, x)
            if x.size == rows * x.shape[-1] and rows in at_once and x.dtype == _dtype(module):
                kernel = at_once[rows]
                return own(module, x) if kernel is None else product(kernel, module, x)
            pieces = [own(module, row) for row in mx.split(x, rows, axis=axis)]
            return mx.concatenate(pieces, axis=axis)

        names = {name: changed_call, "__module__": original.__module__}
        return type(original.__name__, (original,), names)

    def _attend(
        self,
        queries: mx.array,
        keys: Any,
        values: Any,
        cache: Any,
        scale: float,
        mask: Any,
        sinks: mx.array | None = None,
    ) -> mx.array:
        """Attention of each row over its own keys, as `scaled_dot_product_attention` gives it."""
        rows = queries.shape[2]
        # A mask of another kind says what a row sees in a way of its own; see `exact.check_exact`.
        if (
            self._rows == 1
            or rows != self._rows
            or not (isinstance(mask, str) and mask == "causal")
        ):
            return scaled_dot_product_attention(queries, keys, values, cache, scale, mask, sinks)
        self.attended += 1
        stored: mx.array = keys[0] if isinstance(keys, tuple | list) else keys
        before = stored.shape[-2] - rows
        pieces = []
        for i in range(rows):
            row = queries[:, :, i : i + 1]
            k, v = (_first(part, before + i + 1) for part in (keys, values))
            pieces.append(scaled_dot_product_attention(row, k, v, cache, scale, None, sinks))
        return mx.concatenate(pieces, axis=2)


def product(kernel: Kernel, module: Any, x: mx.array) -> mx.array:
    """A quantized module's output by a kernel."""
    about = linear_of(module).product(x.size // x.shape[-1])
    y = kernel(x, module["weight"], module["scales"], module["biases"], about)
    return y + module["bias"] if "bias" in module else y


def _dtype(module: Any) -> mx.Dtype:
    """The type of the products for which forms were compared."""
    dtype: mx.Dtype = module["scales" if "scales" in module else "weight"].dtype
    return dtype


def _first(part: Any, count: int) -> Any:
    """The first positions of keys or values, which may be quantized."""
    return tree_map(lambda stored: stored[..., :count, :], part)
