"""DeepSpec's evaluator rule: the block ends before the first slot below a fixed confidence."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError
from ..types import Round


class ThresholdScheduler:
    """Admits a slot while its own confidence reaches `value`; its own policy.

    Args:
        value: in [0, 1].

    Raises:
        InputError: outside that range.
    """

    needs_confidence = True
    reads_confidence = True

    def __init__(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise InputError("scheduler threshold", value, "a confidence from 0 to 1")
        self.name = f"threshold:{value}"
        self._value = value

    @classmethod
    def parse(cls, argument: str) -> ThresholdScheduler:
        """From the text after "threshold:"."""
        try:
            value = float(argument)
        except ValueError as error:
            found = repr(argument) if argument else "no value"
            hint = "For example threshold:0.5."
            raise InputError("scheduler threshold", found, "a number", hint) from error
        return cls(value)

    def start(self, gamma: int) -> ThresholdScheduler:
        """See `Scheduler.start`."""
        return self

    def park(self, context: int, limit: int) -> int:
        """See `Policy.park`."""
        return 0

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        """See `Policy.admit`."""
        return seen[slot] >= self._value

    def learn(self, done: Round) -> None:
        """See `Policy.learn`."""
