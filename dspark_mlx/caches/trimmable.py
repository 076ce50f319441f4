"""Caches that mlx-lm's own `trim` rolls back exactly: plain and quantised keys and values."""

from __future__ import annotations

from typing import Any, ClassVar

import mlx.core as mx
from mlx_lm.models.cache import KVCache, QuantizedKVCache


class PlainCache:
    """Keys and values of all positions."""

    CACHE: ClassVar[type] = KVCache

    @staticmethod
    def drop(cache: Any, rows: int) -> None:
        """See `CacheKind.drop`."""
        cache.trim(rows)

    @staticmethod
    def arrays(cache: Any) -> list[mx.array]:
        """See `CacheKind.arrays`."""
        return [cache.keys, cache.values]


class QuantizedCache(PlainCache):
    """Quantised keys and values of all positions, each as packed numbers, scales and biases."""

    CACHE: ClassVar[type] = QuantizedKVCache

    @staticmethod
    def arrays(cache: Any) -> list[mx.array]:
        """See `CacheKind.arrays`."""
        return [*cache.keys, *cache.values]
