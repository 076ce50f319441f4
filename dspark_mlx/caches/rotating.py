"""Caches of sliding-window layers, which hold the newest positions only."""

from __future__ import annotations

from typing import Any, ClassVar

import mlx.core as mx
from mlx_lm.models.cache import RotatingKVCache


class RotatingCache:
    """Keys and values of the window's positions."""

    CACHE: ClassVar[type] = RotatingKVCache

    @staticmethod
    def drop(cache: Any, rows: int) -> None:
        """See `CacheKind.drop`.

        After a forward over several rows, mlx-lm's cache holds these rows last and in order, after
        at least max_size - 1 older ones. So cutting them off removes nothing that the window still
        covers. mlx-lm's `trim` only moves the write position, which is wrong once the window has
        wrapped around.
        """
        assert cache.keys is not None and cache._idx == cache.keys.shape[2]
        cache.keys = cache.keys[..., :-rows, :]
        cache.values = cache.values[..., :-rows, :]
        cache.offset -= rows
        cache._idx -= rows
        # The next round may be computed by another thread.
        mx.async_eval(cache.keys, cache.values)

    @staticmethod
    def arrays(cache: Any) -> list[mx.array]:
        """See `CacheKind.arrays`."""
        return [cache.keys, cache.values]
