"""DeepSeek V4.1's own cache: a window, compressed groups of rows and the group still open."""

from __future__ import annotations

from typing import Any, ClassVar

import mlx.core as mx

try:
    from mlx_lm.models.deepseek_v41 import LayerCache
except ImportError:  # mlx-lm before 0.32.2

    class LayerCache:  # type: ignore[no-redef]
        """Stands for a class that this mlx-lm does not have; no cache is one."""


class LayerStateCache:
    """One layer's window, closed groups and open group, which only ever grow or are evicted."""

    CACHE: ClassVar[type] = LayerCache
    RECURRENT: ClassVar[bool] = True
    NEWEST_ONLY: ClassVar[bool] = True
    UNREAD: ClassVar[bool] = True

    @staticmethod
    def snapshot(cache: Any) -> dict[str, Any]:
        """See `CacheKind.snapshot`."""
        return dict(vars(cache))

    @staticmethod
    def drop(cache: Any, rows: int, before: Any) -> None:
        """See `CacheKind.drop`."""
        vars(cache).update(before)

    @staticmethod
    def bytes_per_token(cache: Any) -> int:
        """See `CacheKind.bytes_per_token`; a group of rows has one compressed row."""
        groups = [a for a in (cache.compress_kv, cache.index_k) if a is not None]
        return sum(array.nbytes for array in groups) // max(cache.offset, 1)

    @classmethod
    def bytes_at(cls, cache: Any, tokens: int, rows: int) -> int:
        """See `CacheKind.bytes_at`."""
        window = sum(array.nbytes for array in cls.arrays(cache))
        return window + cls.bytes_per_token(cache) * tokens

    @staticmethod
    def arrays(cache: Any) -> list[mx.array]:
        """See `CacheKind.arrays`."""
        return [value for value in vars(cache).values() if isinstance(value, mx.array)]
