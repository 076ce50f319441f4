"""Takes a request's caches and drafter context apart into what can be cut and what cannot.

Keys and values of all positions are *rows*: the first n of them are those of the first n tokens.
Windows, recurrent states, pending features and whatever else is not one row a token are *borders*:
they belong to one number of tokens and serve no other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import CacheList, KVCache, QuantizedKVCache

from ..caches import leaves
from ..caches.trimmable import is_unwritten
from ..drafters.base import DrafterContext
from ..drafters.context_cache import ContextCache

# Before the name of a cache's class: of a layer that has no attention.
_UNWRITTEN = "unwritten "

Rows = list[mx.array]
"""Arrays `[1, heads, tokens, ...]` of all caches that are rows, in one order."""


@dataclass(frozen=True)
class Layout:
    """What the caches of a request are, the target's and then the drafter's.

    Only requests of equal layouts share what is kept.

    Attributes:
        kinds: name of each cache's class, and whether it is rows, or nothing.
        quantized_from: number of tokens below which the target's caches are not quantized; 0 where
            they are not quantized here.
        templates: the same caches without content.
    """

    kinds: tuple[tuple[str, bool], ...]
    quantized_from: int
    templates: tuple[Any, ...]

    @property
    def cuts_anywhere(self) -> bool:
        """Whether a prefix of any length can be taken out."""
        return all(is_rows for _, is_rows in self.kinds)


@dataclass(frozen=True)
class Border:
    """What belongs to one number of tokens: caches that are not rows, and pending features."""

    caches: tuple[Any, ...]
    pending: tuple[Any, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(array.nbytes for array in self.arrays())

    def arrays(self) -> list[mx.array]:
        """Every array in it."""
        waiting = [array for part in self.pending for array in (*part.taps, part.tokens)]
        return [*_arrays(self.caches), *waiting]


def layout_of(
    caches: Sequence[Any], context: DrafterContext | None, length: int, quantized_from: int
) -> Layout:
    """The layout of a request that has read `length` tokens and flushed its context."""
    found = _all(caches, context)
    kinds = [_kind(leaf, length) for leaf in found]
    if context is not None and context.pending:
        kinds.append(("pending", False))
    quantized = any(type(leaf) is QuantizedKVCache for leaf in found)
    return Layout(
        tuple(kinds),
        quantized_from if quantized else 0,
        tuple(_emptied(leaf) if _kind(leaf, length)[1] else None for leaf in found),
    )


def rows_of(caches: Sequence[Any], context: DrafterContext | None, layout: Layout) -> Rows:
    """The rows of a request; its own arrays, which it must not write to any more."""
    found = zip(_all(caches, context), layout.templates, strict=True)
    inner = [_inner(leaf) for leaf, template in found if template is not None]
    written = [leaf for leaf in inner if not is_unwritten(leaf)]
    return [array for leaf in written for array in (*_listed(leaf.keys), *_listed(leaf.values))]


def border_of(caches: Sequence[Any], context: DrafterContext | None, length: int) -> Border:
    """A copy of what is not rows; arrays are shared until the request writes to its own."""
    found = [leaf for leaf in _all(caches, context) if not _kind(leaf, length)[1]]
    pending = tuple(context.pending) if context is not None else ()
    return Border(tuple(_copied(leaf) for leaf in found), pending)


def restore(
    caches: list[Any],
    context: DrafterContext | None,
    layout: Layout,
    rows: Rows,
    border: Border | None,
) -> None:
    """Put what was kept into a new request.

    Args:
        caches, context: changed in place; they are the request's own afterwards.
        layout: of what was kept.
        rows: arrays that nothing else holds.
        border: what is not rows; None where everything is.
    """
    arrays, others = iter(rows), iter(border.caches if border else ())
    made = [
        _copied(next(others)) if template is None else _filled(template, arrays, name)
        for template, (name, _) in zip(layout.templates, layout.kinds, strict=False)
    ]
    count = len(leaves(caches))
    _put(caches, iter(made[:count]))
    if context is not None:
        context.caches = made[count:]
        context.pending = list(border.pending) if border else []


def _all(caches: Sequence[Any], context: DrafterContext | None) -> list[Any]:
    return [*leaves(caches), *(context.caches if context is not None else ())]


def _inner(leaf: Any) -> Any:
    return leaf.held if type(leaf) is ContextCache else leaf


def _kind(leaf: Any, length: int) -> tuple[str, bool]:
    """See `Layout.kinds`."""
    if is_unwritten(leaf):
        return _UNWRITTEN + type(leaf).__name__, True
    return type(leaf).__name__, _is_rows(leaf, length)


def _is_rows(leaf: Any, length: int) -> bool:
    """Whether a cache has a row for each of `length` tokens, and nothing else."""
    if type(leaf) is ContextCache and (leaf.window or leaf.start):
        return False
    inner = _inner(leaf)
    is_kind = type(inner) in (KVCache, QuantizedKVCache)
    return is_kind and inner.keys is not None and inner.offset == length


def _listed(value: Any) -> list[mx.array]:
    """Keys or values: one array, or packed numbers, scales and biases."""
    return [value] if isinstance(value, mx.array) else list(value)


def _emptied(leaf: Any) -> Any:
    empty = copy.copy(leaf)
    if type(leaf) is ContextCache:
        empty.held = _emptied(leaf.held)
        return empty
    empty.keys = empty.values = None
    empty.offset = 0
    return empty


def _filled(template: Any, arrays: Iterator[mx.array], kind: str) -> Any:
    leaf = _emptied(template)
    if kind.startswith(_UNWRITTEN):
        return leaf
    inner = _inner(leaf)
    if type(inner) is QuantizedKVCache:
        inner.keys, inner.values = ([next(arrays) for _ in range(3)] for _ in range(2))
        inner.offset = inner.keys[0].shape[2]
    else:
        inner.keys, inner.values = next(arrays), next(arrays)
        inner.offset = inner.keys.shape[2]
    return leaf


def _copied(value: Any) -> Any:
    """A copy that shares memory and no array object: caches write in place into their own.

    MLX writes into memory only where nothing else holds it, and copies it first otherwise.
    """
    if isinstance(value, mx.array):
        return mx.array(value)
    if isinstance(value, list | tuple):
        return type(value)(_copied(part) for part in value)
    if hasattr(value, "__dict__"):
        made = copy.copy(value)
        vars(made).update({name: _copied(part) for name, part in vars(value).items()})
        return made
    return value


def _arrays(value: Any) -> list[mx.array]:
    if isinstance(value, mx.array):
        return [value]
    if isinstance(value, list | tuple):
        return [array for part in value for array in _arrays(part)]
    return _arrays(list(vars(value).values())) if hasattr(value, "__dict__") else []


def _put(caches: list[Any], new: Iterator[Any]) -> None:
    """Put caches in the places of those that `leaves` finds, in its order."""
    for i, cache in enumerate(caches):
        if isinstance(cache, CacheList):
            inner = list(cache.caches)
            _put(inner, new)
            cache.caches = tuple(inner)
        else:
            caches[i] = next(new)
