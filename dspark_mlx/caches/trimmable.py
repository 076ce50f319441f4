"""Caches that mlx-lm's own `trim` cuts back exactly: keys and values, position by position."""

from __future__ import annotations

from typing import Any, ClassVar

import mlx.core as mx
from mlx_lm.models.cache import ChunkedKVCache, KVCache, QuantizedKVCache

_STEP = 256
"""mlx-lm's caches grow by so many positions."""


class PlainCache:
    """Keys and values of all positions."""

    CACHE: ClassVar[type] = KVCache
    RECURRENT: ClassVar[bool] = False
    NEWEST_ONLY: ClassVar[bool] = False
    UNREAD: ClassVar[bool] = False

    @staticmethod
    def snapshot(cache: Any) -> None:
        """See `CacheKind.snapshot`."""

    @staticmethod
    def drop(cache: Any, rows: int, before: Any) -> None:
        """See `CacheKind.drop`."""
        cache.trim(rows)

    @classmethod
    def bytes_per_token(cls, cache: Any) -> int:
        """See `CacheKind.bytes_per_token`."""
        return cls.bytes_a_row(cache)

    @classmethod
    def bytes_at(cls, cache: Any, tokens: int, rows: int) -> int:
        """See `CacheKind.bytes_at`."""
        return cls.bytes_a_row(cache) * -(-tokens // _STEP) * _STEP

    @classmethod
    def bytes_a_row(cls, cache: Any) -> int:
        """Bytes of a position's keys and values."""
        return sum(array.nbytes // array.shape[2] for array in cls.arrays(cache))

    @staticmethod
    def arrays(cache: Any) -> list[mx.array]:
        """See `CacheKind.arrays`."""
        return [] if cache.keys is None else [cache.keys, cache.values]


class QuantizedCache(PlainCache):
    """Quantised keys and values, each as packed numbers, scales and biases."""

    CACHE: ClassVar[type] = QuantizedKVCache

    @staticmethod
    def arrays(cache: Any) -> list[mx.array]:
        """See `CacheKind.arrays`."""
        return [] if cache.keys is None else [*cache.keys, *cache.values]


class ChunkedCache(PlainCache):
    """Keys and values of the newest positions, a chunk at most before each forward.

    The front is cut before a forward writes, by what was committed then, so that taking back the
    forward's rows never needs what was cut.
    """

    CACHE: ClassVar[type] = ChunkedKVCache

    @classmethod
    def bytes_per_token(cls, cache: Any) -> int:
        """See `CacheKind.bytes_per_token`."""
        return 0

    @classmethod
    def bytes_at(cls, cache: Any, tokens: int, rows: int) -> int:
        """See `CacheKind.bytes_at`."""
        return super().bytes_at(cache, min(tokens, cache.chunk_size + rows), rows)


def is_unwritten(cache: Any) -> bool:
    """Whether a cache takes rows and has none behind a forward: its layer has no attention, as some
    of Nemotron-NAS's."""
    return type(cache) is KVCache and cache.keys is None
