"""DeepSpec's evaluator rule: the block ends before the first slot below a fixed confidence."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError
from .stateless import Stateless, parse_argument


class ThresholdScheduler(Stateless):
    """Admits a slot while its own confidence reaches `value`.

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
        return cls(
            parse_argument(
                "threshold", argument, float, number="value", of="a number", example="0.5"
            )
        )

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        """See `Policy.admit`."""
        return seen[slot] >= self._value
