"""What requests share that run at once: turns at a model, and its weights held in memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import mlx.nn as nn
from mlx_lm.generate import wired_limit


class Turns:
    """A lock, used by `with`, that goes to whoever has waited longest; its owner can take it again.

    An ordinary lock goes back to the thread that has just let go of it, so that one request would
    run to its end while others wait. Here such a thread stands behind those that wait.
    """

    def __init__(self) -> None:
        self._next = threading.Lock()
        self._turn = threading.RLock()
        self._owner: int | None = None
        self._depth = 0

    def __enter__(self) -> None:
        me = threading.get_ident()
        if self._owner == me:
            self._turn.acquire()
        else:
            with self._next:
                self._turn.acquire()
                self._owner = me
        self._depth += 1

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
        self._turn.release()


class WiredMemory:
    """mlx-lm's wired limit, which belongs to the process, from the first of its users to the last.

    Requests that overlap do not end in the order they began in, so that each putting back what it
    found would leave the limit of another.
    """

    def __init__(self) -> None:
        # Not `Turns`: requests end where their iterator is collected, in the middle of anything.
        self._lock = threading.RLock()
        self._users = 0
        self._limit: contextlib.AbstractContextManager[None] | None = None

    @contextlib.contextmanager
    def use(self, model: nn.Module) -> Iterator[None]:
        """Keep the limit for the length of the block, whichever thread ends it."""
        with self._lock:
            self._users += 1
            if self._limit is None:
                self._limit = wired_limit(model)
                self._limit.__enter__()
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users and self._limit is not None:
                    limit, self._limit = self._limit, None
                    limit.__exit__(None, None, None)


WIRED = WiredMemory()
"""Of this process."""
