"""The scheduler with the same verify length every round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ..errors import InputError
from . import PairFacts, Scheduler
from .stateless import Stateless, number_after_colon


class FixedScheduler(Stateless):
    """Admits the first `length` slots; 0 never drafts.

    Args:
        length: slots to verify, 0 or more; a block may have fewer.

    Raises:
        InputError: the length is below 0.
    """

    USAGE: ClassVar[str] = "fixed:N"
    HELP: ClassVar[str] = "the first N tokens"
    EXAMPLE: ClassVar[str] = "fixed:4"
    NEEDS_PROFILE: ClassVar[bool] = False

    def __init__(self, length: int) -> None:
        if length < 0:
            raise InputError("scheduler fixed", length, "a number of slots, 0 or more")
        self.name = f"fixed:{length}"
        self._length = length

    @classmethod
    def make(cls, argument: str, pair: PairFacts) -> Scheduler:
        """See `SchedulerKind.make`."""
        length = number_after_colon(cls, argument, "a number of slots")
        if length != int(length):
            raise InputError("scheduler fixed", argument, "a whole number of slots")
        return cls(int(length))

    def park(self, context: int, limit: int) -> int:
        """See `Policy.park`."""
        return 0 if self._length else 1 << 30

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        """See `Policy.admit`."""
        return slot < self._length
