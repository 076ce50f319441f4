"""DeepSpec's evaluator rule: verify up to the first slot whose confidence is below a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ..errors import InputError
from . import PairFacts, Scheduler
from .stateless import Stateless, number_after_colon


class ThresholdScheduler(Stateless):
    """Admits slots while their confidences are at least `value`.

    Args:
        value: the least confidence, from 0 to 1.

    Raises:
        InputError: the value is outside that range.
    """

    USAGE: ClassVar[str] = "threshold:VALUE"
    HELP: ClassVar[str] = "up to the first token whose confidence is lower"
    EXAMPLE: ClassVar[str] = "threshold:0.5"
    NEEDS_PROFILE: ClassVar[bool] = False

    needs_confidence = True
    reads_confidence = True

    def __init__(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise InputError("scheduler threshold", value, "a confidence from 0 to 1")
        self.name = f"threshold:{value}"
        self._value = value

    @classmethod
    def make(cls, argument: str, pair: PairFacts) -> Scheduler:
        """See `SchedulerKind.make`."""
        return cls(number_after_colon(cls, argument, "a number from 0 to 1"))

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        """See `Policy.admit`."""
        return seen[slot] >= self._value
