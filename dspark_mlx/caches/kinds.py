"""What the decode loop asks of a kind of cache."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import mlx.core as mx


class CacheKind(Protocol):
    """How one of mlx-lm's caches is cut back and looked into.

    Attributes:
        CACHE: mlx-lm's class.
        RECURRENT: whether dropping rows leaves the state from before the forward, so that the rows
            that stay have to be computed again (see `targets.rollback`).
        NEWEST_ONLY: whether only rows of the newest forward can be taken out, and not its first.
        UNREAD: whether it holds arrays that the next forward reads and that this one's logits need
            not have computed.
    """

    CACHE: ClassVar[type]
    RECURRENT: ClassVar[bool]
    NEWEST_ONLY: ClassVar[bool]
    UNREAD: ClassVar[bool]

    @staticmethod
    def snapshot(cache: Any) -> Any:
        """What `drop` needs to know from before a forward; None where it needs nothing."""
        ...

    @staticmethod
    def drop(cache: Any, rows: int, before: Any) -> None:
        """Take the last rows out, which one forward over at least as many has just written.

        Args:
            cache: changed in place.
            rows: how many.
            before: `snapshot` of the cache before that forward.
        """
        ...

    @staticmethod
    def bytes_per_token(cache: Any) -> int:
        """Bytes that each further position takes; 0 where the cache has a limit, or is empty."""
        ...

    @staticmethod
    def bytes_at(cache: Any, tokens: int, rows: int) -> int:
        """Bytes that a request's cache takes where it holds so many positions.

        Args:
            cache: one that has run at least a row; it is not changed, and may be unevaluated.
            tokens: positions, 1 or more.
            rows: of the widest forward, which a window holds beside its own.
        """
        ...

    @staticmethod
    def arrays(cache: Any) -> list[mx.array]:
        """Every array that the cache holds, none where it is empty."""
        ...
