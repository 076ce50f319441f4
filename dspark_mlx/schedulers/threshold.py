"""DeepSpec's evaluator rule: the block ends before the first slot below a fixed confidence."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError


class ThresholdScheduler:
    """Admits a slot while its own confidence reaches `value`.

    Args:
        value: in [0, 1].

    Raises:
        InputError: outside that range.
    """

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
            return cls(float(argument))
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            found = repr(argument) if argument else "no value"
            hint = "For example threshold:0.5."
            raise InputError("scheduler threshold", found, "a number", hint) from error

    def admit(self, confidence: Sequence[float]) -> bool:
        """See `Scheduler.admit`."""
        return confidence[-1] >= self._value
