"""Caches of a sliding window: the newest positions only."""

from __future__ import annotations

from typing import Any, ClassVar

import mlx.core as mx
from mlx_lm.models.cache import RotatingKVCache

from .trimmable import PlainCache


class SinkKVCache(RotatingKVCache):
    """A window that also keeps the first `keep` positions; several rows see what single ones see.

    mlx-lm's mask for several rows moves the window over the first positions too, so that every row
    but the first loses some of them.
    """

    def make_mask(
        self, N: int, window_size: int | None = None, return_array: bool = False
    ) -> mx.array | str | None:
        """The mask of `N` new rows over what `update_and_fetch` will give, bool `[N, keys]`."""
        if N == 1:
            return super().make_mask(N, window_size, return_array)
        offset = min(self.max_size - 1, self.offset)
        if offset + N <= self.max_size and not return_array:
            return "causal"
        keys = mx.arange(offset + N)
        rows = mx.arange(offset, offset + N)[:, None]
        newest = keys > rows - (self.max_size - self.keep)
        return (keys <= rows) & (newest | (keys < self.keep))


class LimitedKVCache(SinkKVCache):
    """The cache of `max_kv_size`: a prompt is read under mlx-lm's own mask, as mlx-lm reads it.

    Attributes:
        as_single_rows: whether several rows see what each of them would see alone, as those of a
            block of drafts have to.
    """

    as_single_rows = False

    def make_mask(
        self, N: int, window_size: int | None = None, return_array: bool = False
    ) -> mx.array | str | None:
        """See `SinkKVCache.make_mask`."""
        kind = SinkKVCache if self.as_single_rows else RotatingKVCache
        mask: mx.array | str | None = kind.make_mask(self, N, window_size, return_array)
        return mask


class RotatingCache(PlainCache):
    """Keys and values of a window's positions."""

    CACHE: ClassVar[type] = RotatingKVCache
    NEWEST_ONLY: ClassVar[bool] = True

    @staticmethod
    def drop(cache: Any, rows: int, before: Any) -> None:
        """See `CacheKind.drop`.

        A forward over several rows leaves them last, in order, behind at least max_size - 1 older
        ones, so cutting them off loses nothing that the window still covers. mlx-lm's `trim` only
        moves the write position, which is wrong once the window has wrapped.
        """
        if cache.keys is None:
            # Of a layer that did not run; mlx-lm's `trim` of other kinds takes nothing either.
            return
        assert cache._idx == cache.keys.shape[2]
        cache.keys = cache.keys[..., :-rows, :]
        cache.values = cache.values[..., :-rows, :]
        cache.offset -= rows
        cache._idx -= rows
        # The next round may be computed by another thread.
        mx.async_eval(cache.keys, cache.values)

    @classmethod
    def bytes_per_token(cls, cache: Any) -> int:
        """See `CacheKind.bytes_per_token`."""
        return 0

    @classmethod
    def bytes_at(cls, cache: Any, tokens: int, rows: int) -> int:
        """See `CacheKind.bytes_at`."""
        return cls.bytes_a_row(cache) * min(tokens, cache.max_size + rows)


class SinkCache(RotatingCache):
    """Keys and values of a window's positions and of the first few."""

    CACHE: ClassVar[type] = SinkKVCache


class LimitedCache(SinkCache):
    """The same where `max_kv_size` asks for it."""

    CACHE: ClassVar[type] = LimitedKVCache
