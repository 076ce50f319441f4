"""The scheduler that verifies the whole block every round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from . import PairFacts, Scheduler
from .stateless import Stateless


class FullScheduler(Stateless):
    """Admits every slot; reads no confidence."""

    USAGE: ClassVar[str] = "full"
    HELP: ClassVar[str] = "the whole block"
    EXAMPLE: ClassVar[str] = "full"
    NEEDS_PROFILE: ClassVar[bool] = False

    name = "full"

    @classmethod
    def make(cls, argument: str, pair: PairFacts) -> Scheduler:
        """See `SchedulerKind.make`."""
        return cls()

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        """See `Policy.admit`."""
        return True
