"""The whole block, always."""

from __future__ import annotations

from collections.abc import Sequence

from ..types import Round


class FullScheduler:
    """Admits every slot; reads no confidence and learns nothing, so it is its own policy."""

    name = "full"
    needs_confidence = False
    reads_confidence = False

    def start(self, gamma: int) -> FullScheduler:
        """See `Scheduler.start`."""
        return self

    def park(self, context: int, limit: int) -> int:
        """See `Policy.park`."""
        return 0

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        """See `Policy.admit`."""
        return True

    def learn(self, done: Round) -> None:
        """See `Policy.learn`."""
