"""Measures the time of one round."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from time import perf_counter


class RoundTimer:
    """Measures a round's time from the creation of this object.

    Attributes:
        host_seconds: time spent in Python on draft, head, accept, commit and context update; the
            target's own forward does not count.
        rollback_seconds: the part of them that cutting the caches back took.
        steady: see `types.Round`.
    """

    def __init__(self) -> None:
        self.host_seconds = 0.0
        self.rollback_seconds = 0.0
        self.steady = True
        self._started = perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since this object was made."""
        return perf_counter() - self._started

    @contextlib.contextmanager
    def host(self) -> Iterator[None]:
        """Add the time of the block to `host_seconds`."""
        started = perf_counter()
        yield
        self.host_seconds += perf_counter() - started

    @contextlib.contextmanager
    def rollback(self) -> Iterator[None]:
        """Add the time of the block, which is inside one of `host`, to `rollback_seconds`."""
        started = perf_counter()
        yield
        self.rollback_seconds += perf_counter() - started
