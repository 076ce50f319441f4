"""A drafter layer's keys and values of the committed positions: of all, or of the newest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from ..caches.batch_attention import BatchKVCache
from ..caches.trimmable import PlainCache

_SLACK = 256


class ContextCache:
    """Keys and values of one layer's context, with the interface of mlx-lm's KVCache.

    Args:
        window: how many positions before the anchor the layer attends to at most; 0 for all. Older
            ones are dropped, many at a time, so that at most twice as many are held, or 256 more
            where the window is shorter than that.

    Attributes:
        start: position of the first row that is held.
        held: the rows.
    """

    def __init__(self, window: int = 0) -> None:
        self.window = window
        self.start = 0
        self.held = KVCache()

    @property
    def offset(self) -> int:
        """Position of the next row."""
        return self.start + int(self.held.offset)

    @property
    def keys(self) -> mx.array | None:
        """Keys that are held, with room behind them; None before the first."""
        return self.held.keys

    @property
    def values(self) -> mx.array | None:
        """See `keys`."""
        return self.held.values

    def bytes_at(self, tokens: int, rows: int) -> int:
        """Bytes that it takes at so many positions; arguments as `CacheKind.bytes_at`."""
        kept = min(tokens, self.window + max(self.window, _SLACK) + rows) if self.window else tokens
        return PlainCache.bytes_at(self.held, kept, rows)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append rows; all keys and values from `start` on."""
        keys, values = self.held.update_and_fetch(keys, values)
        return keys, values

    def trim(self, rows: int) -> None:
        """Take the last rows out."""
        self.held.trim(rows)

    def drop_old(self) -> None:
        """Drop what the window has left behind; to be called where all rows are committed."""
        if not _too_many(self.held.offset, self.window):
            return
        old = self.held.offset - self.window
        keys, values = self.held.keys_and_values()
        newest = KVCache()
        # Copies: views would keep the memory of the rows before them.
        newest.keys, newest.values = (mx.contiguous(a[..., old:, :]) for a in (keys, values))
        newest.offset = self.window
        self.held = newest
        self.start += old


class TextCache:
    """Keys and values of a chain's steps over whole texts, in training.

    Args:
        steps: those of the steps before.

    Attributes:
        offset: position of the first row of every step, which has a row for each position.
        steps: keys and values of all steps.
    """

    offset = 0

    def __init__(self, steps: Sequence[tuple[mx.array, mx.array]] = ()) -> None:
        self.steps = list(steps)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append a step's rows; all steps' keys and values, behind one another."""
        self.steps.append((keys, values))
        every_key, every_value = ([step[i] for step in self.steps] for i in range(2))
        return mx.concatenate(every_key, axis=2), mx.concatenate(every_value, axis=2)


class BatchContextCache:
    """One layer's context of several requests.

    Args:
        window: see `ContextCache`; no more is held of each request than alone.
        rows: what is held of each request.
        starts: position of each request's first row that is held.
    """

    def __init__(self, window: int, rows: BatchKVCache, starts: Sequence[int]) -> None:
        self._window = window
        self._rows = rows
        self._starts = list(starts)
        self._first = mx.array(self._starts, dtype=mx.int32)

    @classmethod
    def of(cls, cache: ContextCache) -> BatchContextCache:
        """A batch of one request, which holds at least one row."""
        return cls(cache.window, BatchKVCache.of(cache.held), [cache.start])

    def joined(self, others: Sequence[BatchContextCache]) -> BatchContextCache:
        """These requests and then the others'."""
        starts = [start for part in (self, *others) for start in part._starts]
        rows = self._rows.joined([part._rows for part in others])
        return BatchContextCache(self._window, rows, starts)

    def rows(self, indices: Sequence[int]) -> BatchContextCache:
        """The requests at `indices`, in that order."""
        starts = [self._starts[i] for i in indices]
        return BatchContextCache(self._window, self._rows.rows(indices), starts)

    def alone(self, index: int) -> ContextCache:
        """The cache of the request at `index`, as it would be if it had never been in a batch."""
        cache = ContextCache(self._window)
        cache.start, cache.held = self._starts[index], self._rows.alone(index)
        cache.drop_old()
        return cache

    def drop_old(self) -> None:
        """See `ContextCache.drop_old`: of all requests once the longest has too many rows."""
        if _too_many(max(self._rows.lengths), self._window):
            dropped = self._rows.drop_old(self._window)
            self._starts = [s + n for s, n in zip(self._starts, dropped, strict=True)]
            self._first = mx.array(self._starts, dtype=mx.int32)

    @property
    def held(self) -> mx.array:
        """How many rows are held of each request, int32 `[requests]`."""
        return self._rows.offset

    @property
    def offset(self) -> mx.array:
        """Position of each request's next row, int32 `[requests]`."""
        return self.held + self._first

    def columns(self, rows: int) -> int:
        """Columns of the keys when so many rows more are written."""
        return max(self._rows.lengths) + rows

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write `[requests, heads, rows, size]`; what is held of each request from its first on."""
        keys, values = self._rows.update_and_fetch(keys, values)
        return keys, values

    def drop(self, rows: Sequence[int]) -> None:
        """Take the last `rows[i]` rows of each request i out."""
        self._rows.drop(rows)

    def arrays(self) -> list[mx.array]:
        """Every array that the cache holds."""
        return [self._first, *self._rows.arrays()]


def _too_many(held: int, window: int) -> bool:
    return window > 0 and held - window > max(window, _SLACK)


def joined(parts: Sequence[Sequence[Any]]) -> list[BatchContextCache]:
    """The contexts of requests, and of batches, as one: their caches layer by layer."""
    layers = []
    for layer in zip(*parts, strict=True):
        batches = [BatchContextCache.of(c) if isinstance(c, ContextCache) else c for c in layer]
        layers.append(batches[0].joined(batches[1:]))
    return layers
