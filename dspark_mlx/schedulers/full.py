"""The whole block, always."""

from __future__ import annotations

from collections.abc import Sequence

from .stateless import Stateless


class FullScheduler(Stateless):
    """Admits every slot; reads no confidence."""

    name = "full"

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        """See `Policy.admit`."""
        return True
