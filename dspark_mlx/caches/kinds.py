"""What the decode loop asks of a kind of cache."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import mlx.core as mx


class CacheKind(Protocol):
    """How one of mlx-lm's caches is cut back and looked into.

    Attributes:
        CACHE: mlx-lm's class.
    """

    CACHE: ClassVar[type]

    @staticmethod
    def drop(cache: Any, rows: int) -> None:
        """Take the last rows out, which one forward over at least as many has just written."""
        ...

    @staticmethod
    def arrays(cache: Any) -> list[mx.array]:
        """Every array that a cache which is not empty holds."""
        ...
