"""Shared by concurrent requests: the lock of a model, and the wired memory limit."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import mlx.nn as nn
from mlx_lm.generate import wired_limit


class Turns:
    """A fair, reentrant lock for `with`: it goes to the thread that has waited longest.

    A thread that releases an ordinary lock usually gets it again at once, so that one request would
    run to its end while others wait. Here such a thread queues behind the waiting ones.
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
    """Raises the process's wired memory limit, by mlx-lm, while at least one request runs.

    Overlapping requests end in any order. If each restored the limit that it found, the last one
    could restore another request's limit instead of the original one.
    """

    def __init__(self) -> None:
        # Not `Turns`: garbage collection can end a request while its thread is taking a lock.
        self._lock = threading.RLock()
        self._users = 0
        self._limit: contextlib.AbstractContextManager[None] | None = None

    @contextlib.contextmanager
    def use(self, model: nn.Module) -> Iterator[None]:
        """Hold the limit while the block runs; another thread may end the block."""
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
"""The wired memory of this process."""
