"""A bounded buffer between the thread that makes chunks and the one reader who takes them."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Buffer(Generic[Item]):
    """Items of one request, in order, and its end; the reader may be a thread or a task.

    `full` and `ended` are plain attributes: whoever fills the buffer looks at them without a lock.

    Args:
        size: number of unread items from which the buffer is full, until half of them are read. One
            round may exceed it.
        wake: called when a full buffer has room again and when the reader gives up; it must not
            wait for anything, because garbage collection may call it.

    Attributes:
        full: whether the reader has to take items before more are made.
        ended: whether no more items come, or are wanted.
        failure: the error that ended the items; None without one.
    """

    def __init__(self, size: int, wake: Callable[[], None]) -> None:
        self.full = False
        self.ended = False
        self.failure: BaseException | None = None
        self._size, self._wake = size, wake
        self._items: deque[Item] = deque()
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    def put(self, items: Sequence[Item], last: bool = False) -> None:
        """Add items, and the end with the last ones; nothing is added behind the end."""
        with self._changed:
            if self.ended:
                return
            self._items.extend(items)
            self.full = len(self._items) >= self._size
            self.ended = last
            self._tell()

    def end(self, error: BaseException | None = None) -> None:
        """End the items; the reader gets the error behind those that it has not read yet."""
        with self._changed:
            if not self.ended:
                self._error = self.failure = error
                self.ended = True
            self._tell()

    def abandon(self) -> None:
        """End the items because nobody reads them any more; takes no lock."""
        self.ended = True
        self._wake()

    def take(self, timeout: float | None = None) -> Item | None:
        """The next item, waited for; None behind the last one.

        Args:
            timeout: seconds to wait at most; None for no limit.

        Raises:
            TimeoutError: no item came in time.
            BaseException: the error that ended the request.
        """
        with self._changed:
            if not self._changed.wait_for(self._readable, timeout):
                raise TimeoutError(f"no text within {timeout} seconds")
            return self._next()

    async def take_async(self) -> Item | None:
        """As `take`; other tasks of the event loop run meanwhile.

        Raises:
            RuntimeError: another task waits for the next item.
        """
        while True:
            with self._changed:
                if self._readable():
                    return self._next()
                if self._waiter is not None and not self._waiter[1].done():
                    raise RuntimeError("two tasks read one request; each needs its own")
                loop = asyncio.get_running_loop()
                future: asyncio.Future[None] = loop.create_future()
                self._waiter = loop, future
            await future

    def _readable(self) -> bool:
        return bool(self._items) or self.ended

    def _next(self) -> Item | None:
        if not self._items:
            error, self._error = self._error, None
            if error is not None:
                raise error
            return None
        item = self._items.popleft()
        # Not at the first free place, so that a slow reader does not cause a wake-up a token.
        if self.full and len(self._items) <= self._size // 2:
            self.full = False
            self._wake()
        return item

    def _tell(self) -> None:
        self._changed.notify_all()
        if self._waiter is None:
            return
        (loop, future), self._waiter = self._waiter, None
        try:
            loop.call_soon_threadsafe(_finish, future)
        except RuntimeError:  # the reader's event loop was closed, so that nobody reads
            self.ended = True


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
