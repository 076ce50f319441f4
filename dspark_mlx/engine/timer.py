"""The stop-watch of one round."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from time import perf_counter


class RoundTimer:
    """Runs from when it is made.

    Attributes:
        host_seconds: the part spent in Python beyond the target's own forward: draft, head, accept,
            commit and context update.
    """

    def __init__(self) -> None:
        self.host_seconds = 0.0
        self._started = perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since it was made."""
        return perf_counter() - self._started

    @contextlib.contextmanager
    def host(self) -> Iterator[None]:
        """Count the block's time as Python's."""
        started = perf_counter()
        yield
        self.host_seconds += perf_counter() - started
