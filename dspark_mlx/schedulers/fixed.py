"""The same verify length every round."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError
from ..types import Round


class FixedScheduler:
    """Admits the first `length` slots; 0 never drafts. Its own policy.

    Args:
        length: slots, 0 or more; a block may have fewer.

    Raises:
        InputError: below 0.
    """

    needs_confidence = False
    reads_confidence = False

    def __init__(self, length: int) -> None:
        if length < 0:
            raise InputError("scheduler fixed", length, "a number of slots, 0 or more")
        self.name = f"fixed:{length}"
        self._length = length

    @classmethod
    def parse(cls, argument: str) -> FixedScheduler:
        """From the text after "fixed:"."""
        try:
            length = int(argument)
        except ValueError as error:
            found = repr(argument) if argument else "no number"
            hint = "For example fixed:4."
            raise InputError("scheduler fixed", found, "a number of slots", hint) from error
        return cls(length)

    def start(self, gamma: int) -> FixedScheduler:
        """See `Scheduler.start`."""
        return self

    def park(self, context: int, limit: int) -> int:
        """See `Policy.park`."""
        return 0 if self._length else 1 << 30

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        """See `Policy.admit`."""
        return slot < self._length

    def learn(self, done: Round) -> None:
        """See `Policy.learn`."""
