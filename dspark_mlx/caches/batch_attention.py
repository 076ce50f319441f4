"""Keys and values of several requests whose rows stand at different positions.

Every request writes at its own position and reads up to it, by arrays of positions: mlx-lm's
models hand `offset`, int32 `[batch]`, to the rope and take the mask from `make_mask`. Taking rows
back moves positions only, each request's by its own number of rows; nothing is copied or shifted.
A prompt is read by its request alone, whose caches then join the batch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self, TypeAlias

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import KVCache, QuantizedKVCache, RotatingKVCache

Stored: TypeAlias = Any
"""Keys or values `[batch, heads, slots, size]`: an array, or the three of a quantised cache."""

ROOM = 64
"""The most rows that a forward over a batch may have."""

_STEP = 256


class BatchKVCache:
    """Keys and values of all positions.

    Args:
        keys, values: each request's from its position 0 on; what follows its end is never read.
        lengths: positions of each request.

    Attributes:
        offset: the lengths on the device, int32 `[batch]`.
    """

    def __init__(self, keys: Stored, values: Stored, lengths: Sequence[int]) -> None:
        self.keys = keys
        self.values = values
        self._move(lengths)

    @classmethod
    def of(cls, cache: KVCache) -> Self:
        """A batch of one request."""
        keys, values = cache.keys_and_values()
        return cls(keys, values, [cache.offset])

    def joined(self, others: Sequence[Self]) -> Self:
        """These requests and then the others'."""
        parts = (self, *others)
        slots = self._rounded(max(part._slots for part in parts))
        keys, values = (
            tree_map(lambda *arrays: mx.concatenate(arrays), *(grown(s, slots) for s in stored))
            for stored in zip(*((part.keys, part.values) for part in parts), strict=True)
        )
        return self._with(keys, values, [n for part in parts for n in part.lengths])

    def rows(self, indices: Sequence[int]) -> Self:
        """The requests at `indices`, in that order."""
        taken = mx.array(list(indices))
        keys, values = tree_map(lambda stored: stored[taken], (self.keys, self.values))
        return self._with(keys, values, [self.lengths[i] for i in indices])

    def alone(self, index: int) -> Any:
        """The cache of the request at `index`, as it would be if it had never been in a batch."""
        return self._given_back(KVCache(), index)

    def drop(self, rows: Sequence[int]) -> None:
        """Take the last `rows[i]` rows of each request i out."""
        self._move([length - n for length, n in zip(self.lengths, rows, strict=True)])

    def drop_old(self, most: int) -> list[int]:
        """Take all but each request's newest `most` rows out, which move to the front.

        Returns:
            How many rows of each request were taken out.
        """
        dropped = [max(length - most, 0) for length in self.lengths]
        places = np.array(dropped)[:, None] + np.arange(most)
        newest = mx.array(np.minimum(places, self._slots - 1).astype(np.int32))[:, None, :, None]

        def moved(stored: mx.array) -> mx.array:
            return mx.take_along_axis(stored, newest, axis=2)

        self.keys, self.values = tree_map(moved, (self.keys, self.values))
        self.drop(dropped)
        return dropped

    def arrays(self) -> list[mx.array]:
        """Every array that the cache holds."""
        return [self.offset, *(array for _, array in tree_flatten((self.keys, self.values)))]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Stored, Stored]:
        """Write `[batch, heads, rows, size]`; all keys and values up to the longest request's."""
        rows = keys.shape[2]
        end = max(self.lengths) + rows
        if end > self._slots:
            slots = self._rounded(end)
            self.keys, self.values = grown(self.keys, slots), grown(self.values, slots)
        self._write(self._positions(rows), keys, values)
        self._move([length + rows for length in self.lengths])
        keys, values = tree_map(lambda stored: stored[..., :end, :], (self.keys, self.values))
        return keys, values

    def make_mask(
        self, N: int, window_size: int | None = None, return_array: bool = False
    ) -> mx.array:
        """What each of `N` new rows reads, bool `[batch, 1, N, keys]`."""
        return self._reads(mx.arange(max(self.lengths) + N), N, window_size)

    @property
    def _slots(self) -> int:
        return int(tree_flatten(self.keys)[0][1].shape[2])

    def _rounded(self, slots: int) -> int:
        """At least so many slots, with some for rows to come, so that few writes make room."""
        return -(-slots // _STEP) * _STEP

    def _with(self, keys: Stored, values: Stored, lengths: Sequence[int]) -> Self:
        other = copy.copy(self)
        other.keys, other.values = keys, values
        other._move(lengths)
        return other

    def _given_back(self, cache: Any, index: int) -> Any:
        end = cache.offset = self.lengths[index]
        cache.keys, cache.values = tree_map(
            lambda stored: stored[index : index + 1, :, :end], (self.keys, self.values)
        )
        return cache

    def _move(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)
        self.offset = mx.array(self.lengths, dtype=mx.int32)

    def _positions(self, rows: int) -> np.ndarray:
        """Positions of the next rows, `[batch, rows]`: known here, so that no kernel runs."""
        return np.array(self.lengths)[:, None] + np.arange(rows)

    def _write(self, places: np.ndarray, keys: Stored, values: Stored) -> None:
        """Write rows to their slots, `[batch, rows]`."""
        slots = mx.array(places.astype(np.int32))[:, None, :, None]

        def written(stored: mx.array, rows: mx.array) -> mx.array:
            return mx.put_along_axis(stored, slots, rows.astype(stored.dtype), axis=2)

        new = (keys, values)
        self.keys, self.values = tree_map(written, (self.keys, self.values), new)

    def _reads(self, positions: mx.array, N: int, window: int | None) -> mx.array:
        """The mask where the keys have `positions`, `[keys]` or `[batch, keys]`."""
        rows = (self.offset[:, None] + mx.arange(N))[:, None, :, None]
        keys = positions if positions.ndim == 1 else positions[:, None, None]
        mask = (keys >= 0) & (keys <= rows)
        return mask if window is None else mask & (keys > rows - window)


class BatchQuantizedKVCache(BatchKVCache):
    """The same in few bits."""

    group_size: int
    bits: int

    @classmethod
    def of(cls, cache: QuantizedKVCache) -> Self:
        """See `BatchKVCache.of`."""
        made = super().of(cache)
        made.group_size, made.bits = cache.group_size, cache.bits
        return made

    def alone(self, index: int) -> Any:
        """See `BatchKVCache.alone`."""
        return self._given_back(QuantizedKVCache(self.group_size, self.bits), index)

    def _write(self, places: np.ndarray, keys: Stored, values: Stored) -> None:
        packed = [mx.quantize(rows, self.group_size, self.bits) for rows in (keys, values)]
        super()._write(places, *packed)


class BatchWindowCache(BatchKVCache):
    """Keys and values of the newest positions, in a ring: position p stands in slot p % slots.

    The ring has `ROOM` - 1 slots more than the window. What a forward writes over was then out of
    every later row's sight, whatever number of its rows is taken back.
    """

    max_size: int

    @classmethod
    def of(cls, cache: RotatingKVCache) -> Self:
        """See `BatchKVCache.of`."""
        slots, end = cache.max_size + ROOM - 1, cache.offset
        keys, values = (cache._temporal_order(a) for a in (cache.keys, cache.values))
        count = min(keys.shape[2], slots)
        places = np.arange(end - count, end) % slots
        made = cls(grown(keys[..., :0, :], slots), grown(values[..., :0, :], slots), [end])
        made.max_size = cache.max_size
        made._write(places[None], keys[..., -count:, :], values[..., -count:, :])
        return made

    def _rounded(self, slots: int) -> int:
        return slots  # the ring's size is its modulus

    def alone(self, index: int) -> Any:
        """See `BatchKVCache.alone`."""
        cache, end = RotatingKVCache(self.max_size), self.lengths[index]
        count = min(end, self.max_size)
        newest = mx.arange(end - count, end) % self._slots
        cache.keys, cache.values = (
            mx.take(stored[index : index + 1], newest, axis=2)
            for stored in (self.keys, self.values)
        )
        cache.offset, cache._idx = end, count
        return cache

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Stored, Stored]:
        """Write `[batch, heads, rows, size]`, at most `ROOM` rows; the whole ring."""
        rows = keys.shape[2]
        assert rows <= ROOM, f"{rows} rows over a window of a batch, at most {ROOM}"
        self._write(self._positions(rows) % self._slots, keys, values)
        self._move([length + rows for length in self.lengths])
        return self.keys, self.values

    def make_mask(
        self, N: int, window_size: int | None = None, return_array: bool = False
    ) -> mx.array:
        """See `BatchKVCache.make_mask`; each slot holds the newest position that falls on it."""
        newest = (self.offset + N - 1)[:, None]
        positions = newest - (newest - mx.arange(self._slots)) % self._slots
        return self._reads(positions, N, min(window_size or self.max_size, self.max_size))


def grown(stored: Stored, slots: int) -> Stored:
    """The keys or values with room for at least so many positions."""

    def pad(array: mx.array) -> mx.array:
        more = max(slots - array.shape[2], 0)
        return mx.pad(array, [(0, 0), (0, 0), (0, more), (0, 0)])

    return tree_map(pad, stored)
