"""The same verify length every round."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError
from .stateless import Stateless, parse_argument


class FixedScheduler(Stateless):
    """Admits the first `length` slots; 0 never drafts.

    Args:
        length: slots, 0 or more; a block may have fewer.

    Raises:
        InputError: below 0.
    """

    def __init__(self, length: int) -> None:
        if length < 0:
            raise InputError("scheduler fixed", length, "a number of slots, 0 or more")
        self.name = f"fixed:{length}"
        self._length = length

    @classmethod
    def parse(cls, argument: str) -> FixedScheduler:
        """From the text after "fixed:"."""
        return cls(
            parse_argument(
                "fixed", argument, int, number="number", of="a number of slots", example="4"
            )
        )

    def park(self, context: int, limit: int) -> int:
        """See `Policy.park`."""
        return 0 if self._length else 1 << 30

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        """See `Policy.admit`."""
        return slot < self._length
