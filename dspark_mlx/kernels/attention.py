"""Attention of few rows: what a kernel for it looks like, and such a kernel in a network.

Modules of mlx-lm call one function for it, `models.base.scaled_dot_product_attention`. A module
whose call names that function gets a class whose call is the same code with another function under
that name, until `close`. mlx-lm's own modules stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import scaled_dot_product_attention

from .base import Backend
from .race import ROUNDING, largest

_NAME = scaled_dot_product_attention.__name__
_KEYS = (1, 40, 333, 1000)


@dataclass(frozen=True)
class Heads:
    """The form of an attention.

    Attributes:
        rows: rows of the queries, which are the newest of the keys.
        heads, kv_heads: heads of queries, and of keys and values.
        head_dim: width of a head.
        dtype: type of queries, keys, values and the result.
        compiled: whether it is part of a compiled forward, where MLX is given a mask.
    """

    rows: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: mx.Dtype
    compiled: bool = False

    def random(self, keys: int) -> tuple[mx.array, mx.array, mx.array]:
        """Random queries, keys and values, the last two `keys` positions behind a longer store's
        view, as caches give them."""
        q = mx.random.normal((1, self.rows, self.heads, self.head_dim)).swapaxes(1, 2)
        k, v = (
            mx.random.normal((1, self.kv_heads, keys + 7, self.head_dim)).astype(self.dtype)
            for _ in "kv"
        )
        return q.astype(self.dtype), k[:, :, :keys], v[:, :, :keys]


class AttentionKernel(Protocol):
    """An implementation of causal attention of few rows, of one text."""

    @property
    def name(self) -> str:
        """Its name in reports."""
        ...

    @property
    def backend(self) -> Backend:
        """The backend of MLX that compiles it."""
        ...

    @property
    def source(self) -> str:
        """All text that the backend compiles."""
        ...

    @property
    def max_keys(self) -> int:
        """The longest context that it serves, the rows included."""
        ...

    def why_not(self, heads: Heads) -> str | None:
        """Why this kernel cannot compute attention of this form; None if it can."""
        ...

    def __call__(
        self, q: mx.array, k: mx.array, v: mx.array, scale: float, end: mx.array | None
    ) -> mx.array:
        """Causal attention `[batch, heads, rows, head_dim]`.

        Args:
            q: queries `[batch, heads, rows, head_dim]`, of any strides.
            k, v: keys and values `[batch, kv_heads, keys, head_dim]`, of any strides.
            scale: factor of the scores.
            end: how many of the keys count, int32 `[batch]`; None for all. The last `rows` of those
                are the queries' own.
        """
        ...


Attend = Callable[[mx.array, mx.array, mx.array, float, mx.array | None], mx.array]


class ReplacedAttention:
    """Another function in the place of mlx-lm's in a network's modules, until `close`.

    Args:
        network: the network whose modules change.
        function: called as `mlx_lm.models.base.scaled_dot_product_attention`.
    """

    def __init__(self, network: nn.Module, function: Callable[..., mx.array]) -> None:
        self._changed: list[tuple[Any, type]] = []
        made: dict[type, type] = {}
        for _, module in network.named_modules():
            original: Any = type(module)
            call = original.__call__
            if not _attends(call):
                continue
            if original not in made:
                names = {
                    "__call__": _with_global(call, function),
                    "__module__": original.__module__,
                }
                made[original] = type(original.__name__, (original,), names)
            self._changed.append((module, original))
            module.__class__ = made[original]

    @property
    def count(self) -> int:
        """Number of modules that attend through it."""
        return len(self._changed)

    def close(self) -> None:
        """Give every module its own class again."""
        while self._changed:
            module, original = self._changed.pop()
            module.__class__ = original


class AppliedAttention(ReplacedAttention):
    """A kernel in the place of a network's attention of few rows, until `close`.

    Args:
        network: the network whose modules change.
        attend: computes attention as a kernel does.
        takes: whether it computes attention of a form.
        max_keys: the longest context that it serves.
    """

    def __init__(
        self, network: nn.Module, attend: Attend, takes: Callable[[Heads], bool], max_keys: int
    ) -> None:
        super().__init__(network, _replacement(attend, takes, max_keys))


def _attends(call: Any) -> bool:
    named = isinstance(call, FunctionType) and _NAME in call.__code__.co_names
    return named and call.__globals__.get(_NAME) is scaled_dot_product_attention


def _with_global(call: FunctionType, function: Any) -> FunctionType:
    changed = FunctionType(
        call.__code__,
        {**call.__globals__, _NAME: function},
        call.__name__,
        call.__defaults__,
        call.__closure__,
    )
    changed.__kwdefaults__ = call.__kwdefaults__
    return changed


def _replacement(attend: Attend, takes: Callable[[Heads], bool], max_keys: int) -> Any:
    known: dict[tuple[int, ...], bool] = {}

    def able(q: mx.array, k: mx.array, compiled: bool) -> bool:
        batch, heads, rows, width = q.shape
        if k.shape[2] > max_keys or (batch > 1 and not compiled):
            return False
        form = heads, rows, width, k.shape[1], compiled
        if form not in known:
            known[form] = takes(Heads(rows, heads, k.shape[1], width, q.dtype, compiled))
        return known[form]

    def attention(
        queries: mx.array,
        keys: Any,
        values: Any,
        cache: Any,
        scale: float,
        mask: Any,
        sinks: mx.array | None = None,
    ) -> mx.array:
        # A compiled forward's cache has a mask in place of the word, and more keys than count.
        end = getattr(cache, "end", None)
        causal = mask is cache.causal if end is not None else isinstance(mask, str)
        plain = sinks is None and not hasattr(cache, "bits")
        if causal and plain and able(queries, keys, end is not None):
            return attend(queries, keys, values, scale, end)
        result: mx.array = scaled_dot_product_attention(
            queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks
        )
        return result

    return attention


def attention_taken(kernel: AttentionKernel, heads: Heads) -> bool:
    """Whether a kernel computes attention of this form."""
    return kernel.why_not(heads) is None


def attention_forms(network: nn.Module, run: Callable[[], object]) -> set[Heads]:
    """The forms of causal attention that occur while `run` runs the network."""
    found: set[Heads] = set()

    def note(heads: Heads) -> bool:
        found.add(heads)
        return False

    applied = AppliedAttention(network, lambda q, k, v, scale, end: q, note, 1 << 62)
    try:
        run()
    finally:
        applied.close()
    return found


def why_attention_wrong(kernel: AttentionKernel, heads: Heads) -> str | None:
    """What is wrong with a kernel's numbers over random keys; None where nothing is.

    Over keys that all count, and over two requests' at once of which some do.
    """
    scale = heads.head_dim**-0.5
    for more in _KEYS:
        keys = min(heads.rows + more, kernel.max_keys)
        ends = [keys, heads.rows + (keys - heads.rows) // 2]
        (q, k, v), other = (heads.random(keys) for _ in ends)
        both = [mx.concatenate([a, b]) for a, b in zip((q, k, v), other, strict=True)]
        alone = kernel(q, k, v, scale, None)
        together = kernel(both[0], both[1], both[2], scale, mx.array(ends, mx.int32))
        end = ends[1]
        parts = [(q, k, v), (q, k, v), (other[0], other[1][:, :, :end], other[2][:, :, :end])]
        for y, part in zip((alone, together[:1], together[1:]), parts, strict=True):
            if y.shape != q.shape or y.dtype != q.dtype:
                return f"gives {y.dtype} {list(y.shape)}"
            a, b, c = (array.astype(mx.float32) for array in part)
            right = _row_by_row(a, b, c, scale)
            error = largest(y.astype(mx.float32) - right)
            own = largest(_row_by_row(*part, scale).astype(mx.float32) - right)
            limit = own + ROUNDING[q.dtype] * largest(right)
            if not error <= limit:  # NaN is not
                return f"is off by {error:.3g} where {limit:.3g} is allowed, over {keys} keys"
    return None


def _row_by_row(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """Attention by MLX of one row at a time, each over its own keys."""
    rows, before = q.shape[2], k.shape[2] - q.shape[2]
    pieces = []
    for i in range(rows):
        end = before + i + 1
        keys, values = k[:, :, :end], v[:, :, :end]
        row = q[:, :, i : i + 1]
        pieces.append(mx.fast.scaled_dot_product_attention(row, keys, values, scale=scale))
    return mx.concatenate(pieces, axis=2)
