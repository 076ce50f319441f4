"""Recurrent states: convolutions, state space models, delta nets, linear attention."""

from __future__ import annotations

from typing import Any, ClassVar

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache


class RecurrentCache:
    """States that every row overwrites.

    MLX's arrays are immutable, so that references to the states before a forward are a snapshot of
    them: they take no memory beyond what the forward itself reads.
    """

    CACHE: ClassVar[type] = ArraysCache
    RECURRENT: ClassVar[bool] = True
    NEWEST_ONLY: ClassVar[bool] = True
    UNREAD: ClassVar[bool] = True

    @staticmethod
    def snapshot(cache: Any) -> list[mx.array | None]:
        """See `CacheKind.snapshot`."""
        return list(cache.cache)

    @staticmethod
    def drop(cache: Any, rows: int, before: Any) -> None:
        """See `CacheKind.drop`."""
        cache.cache = list(before)

    @staticmethod
    def bytes_per_token(cache: Any) -> int:
        """See `CacheKind.bytes_per_token`."""
        return 0

    @classmethod
    def bytes_at(cls, cache: Any, tokens: int, rows: int) -> int:
        """See `CacheKind.bytes_at`."""
        return sum(array.nbytes for array in cls.arrays(cache))

    @staticmethod
    def arrays(cache: Any) -> list[mx.array]:
        """See `CacheKind.arrays`."""
        return [state for state in cache.cache if state is not None]
