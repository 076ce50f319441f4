"""Caches of a sliding window: the newest positions only."""

from __future__ import annotations

from typing import Any, ClassVar

import mlx.core as mx
from mlx_lm.models.cache import RotatingKVCache

from .trimmable import PlainCache


class RotatingCache(PlainCache):
    """Keys and values of a window's positions."""

    CACHE: ClassVar[type] = RotatingKVCache

    @staticmethod
    def drop(cache: Any, rows: int, before: Any) -> None:
        """See `CacheKind.drop`.

        A forward over several rows leaves them last, in order, behind at least max_size - 1 older
        ones, so cutting them off loses nothing that the window still covers. mlx-lm's `trim` only
        moves the write position, which is wrong once the window has wrapped.
        """
        assert cache.keys is not None and cache._idx == cache.keys.shape[2]
        cache.keys = cache.keys[..., :-rows, :]
        cache.values = cache.values[..., :-rows, :]
        cache.offset -= rows
        cache._idx -= rows
        # The next round may be computed by another thread.
        mx.async_eval(cache.keys, cache.values)
