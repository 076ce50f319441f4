"""Keys and values of a compiled forward, which must not depend on how long a request is.

Rows are written where an array says, and all slots are read under a mask, so that one graph serves
every position until the slots are full.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from .batch_attention import BatchKVCache, grown

_LEAST = 256


def slots_for(positions: int) -> int:
    """Slots for so many positions: whole 256, from 4096 positions on whole eighths of their power
    of two. Few different numbers occur, since each needs a graph of its own."""
    step = max(_LEAST, 1 << max(positions.bit_length() - 4, 0))
    return -(-positions // step) * step


class Slots:
    """Where the rows of a forward stand, the same in every layer.

    Args:
        offset: position of each request's first row, int32 `[batch]`.
        rows: rows of each request.
        slots: slots of the keys.
    """

    def __init__(self, offset: mx.array, rows: int, slots: int) -> None:
        self.offset = offset
        self._rows, self._slots = rows, slots
        self._windows: dict[int, mx.array] = {}

    @cached_property
    def positions(self) -> mx.array:
        """Position of each row, int32 `[batch, rows]`."""
        return self.offset[:, None] + mx.arange(self._rows, dtype=mx.int32)

    @cached_property
    def end(self) -> mx.array:
        """How many slots are in use once the rows are written, int32 `[batch]`."""
        return self.offset + self._rows

    @cached_property
    def causal(self) -> mx.array:
        """What each row reads, bool `[batch, 1, rows, slots]`."""
        return mx.arange(self._slots) <= self.positions[:, None, :, None]

    def within(self, window: int) -> mx.array:
        """The part of `causal` in a window that ends at each row."""
        if window not in self._windows:
            first = self.positions[:, None, :, None] - window
            self._windows[window] = self.causal & (mx.arange(self._slots) > first)
        return self._windows[window]


class SlotCache:
    """One layer's keys and values in a compiled forward, with the interface of mlx-lm's KVCache.

    Args:
        keys, values: `[batch, heads, slots, size]` each.
        slots: where the rows stand.
    """

    def __init__(self, keys: mx.array, values: mx.array, slots: Slots) -> None:
        self.keys, self.values = keys, values
        self.offset, self.end = slots.offset, slots.end
        self._slots = slots

    @property
    def causal(self) -> mx.array:
        """The mask of rows that read all positions up to their own."""
        return self._slots.causal

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write `[batch, heads, rows, size]`; all slots."""
        places = self._slots.positions[:, None, :, None]
        self.keys, self.values = (
            mx.put_along_axis(stored, places, rows.astype(stored.dtype), axis=2)
            for stored, rows in ((self.keys, keys), (self.values, values))
        )
        return self.keys, self.values

    def make_mask(
        self, N: int, window_size: int | None = None, return_array: bool = False
    ) -> mx.array:
        """See `BatchKVCache.make_mask`; over all slots."""
        return self.causal if window_size is None else self._slots.within(window_size)


def have_slots(caches: Sequence[Any]) -> bool:
    """Whether a compiled forward can write a request's or a batch's caches."""
    return all(type(c) is BatchKVCache or type(c) is KVCache for c in caches) and all(
        isinstance(cache.keys, mx.array) for cache in caches
    )


def slots_after(caches: Sequence[Any], rows: int) -> int:
    """Slots that a compiled forward of so many rows reads; arguments as `stored_in`."""
    longest = max(_lengths(caches)) + rows
    return slots_for(max(longest, *(cache.keys.shape[2] for cache in caches)))


def stored_in(caches: Sequence[Any], slots: int) -> tuple[list[mx.array], mx.array]:
    """What a compiled forward reads of caches, which get room for its rows.

    Args:
        caches: `have_slots` holds.
        slots: see `slots_after`.

    Returns:
        Keys and values in turns, and the offsets int32 `[batch]`.
    """
    for cache in caches:
        if cache.keys.shape[2] != slots:
            cache.keys, cache.values = grown(cache.keys, slots), grown(cache.values, slots)
    stored = [array for cache in caches for array in (cache.keys, cache.values)]
    return stored, mx.array(_lengths(caches), dtype=mx.int32)


def store_in(caches: Sequence[Any], stored: Sequence[mx.array], rows: int) -> None:
    """Give caches what a compiled forward has written, and move them by its rows."""
    lengths = [length + rows for length in _lengths(caches)]
    offset = mx.array(lengths, dtype=mx.int32)
    for cache, keys, values in zip(caches, stored[::2], stored[1::2], strict=True):
        cache.keys, cache.values = keys, values
        if type(cache) is KVCache:
            cache.offset += rows
        else:
            cache.lengths, cache.offset = list(lengths), offset


def _lengths(caches: Sequence[Any]) -> list[int]:
    """Positions of each request, the same in every layer."""
    first = caches[0]
    return [first.offset] if type(first) is KVCache else list(first.lengths)
