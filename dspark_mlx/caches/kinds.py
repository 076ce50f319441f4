"""The interface of a kind of cache."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import mlx.core as mx


class CacheKind(Protocol):
    """Functions on the objects of one of mlx-lm's cache classes.

    Attributes:
        CACHE: mlx-lm's cache class.
    """

    CACHE: ClassVar[type]

    @staticmethod
    def drop(cache: Any, rows: int) -> None:
        """Remove the last `rows` rows, all of which the newest forward wrote."""
        ...

    @staticmethod
    def arrays(cache: Any) -> list[mx.array]:
        """Every array of a cache that is not empty."""
        ...
