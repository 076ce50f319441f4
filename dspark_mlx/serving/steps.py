"""One step of all active requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .job import Job


class Steps(Protocol):
    """How active requests are stepped; the thread, the queue and the readers do not know."""

    def step(self, jobs: Sequence[Job]) -> None:
        """Run a round of each request, and deliver it or the request's error.

        Args:
            jobs: the active requests whose readers have room, the longest active first.
        """
        ...


class TakingTurns:
    """Runs one round of each request after the other; each has a loop of its own."""

    def step(self, jobs: Sequence[Job]) -> None:
        """See `Steps`."""
        for job in jobs:
            if not job.ended:
                job.advance()
