"""Hands what a block raises to somebody else, as the thread of an executor does."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType


class HandingOn:
    """Hands whatever the block raises on; the thread that runs it goes on.

    Args:
        take: is given the error.
    """

    def __init__(self, take: Callable[[BaseException], object]) -> None:
        self._take = take

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is not None:
            self._take(error)
        return True
