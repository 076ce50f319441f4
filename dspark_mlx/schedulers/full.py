"""The whole block, always."""

from __future__ import annotations

from collections.abc import Sequence


class FullScheduler:
    """Admits every slot; reads no confidence."""

    name = "full"
    reads_confidence = False

    def admit(self, confidence: Sequence[float]) -> bool:
        """See `Scheduler.admit`."""
        return True
