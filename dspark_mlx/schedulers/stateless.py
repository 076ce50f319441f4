"""Base of schedulers without per-request state: each serves as every request's policy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import InputError
from ..types import Round
from . import Policy, SchedulerKind


class Stateless:
    """A scheduler and policy that always drafts and learns nothing; subclasses define `admit`."""

    needs_confidence = False
    reads_confidence = False

    def start(self, gamma: int, temperature: float = 0.0) -> Policy:
        """See `Scheduler.start`."""
        return self

    def park(self, context: int, limit: int) -> int:
        """See `Policy.park`."""
        return 0

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        """See `Policy.admit`."""
        raise NotImplementedError

    def learn(self, round_: Round) -> None:
        """See `Policy.learn`."""


def number_after_colon(kind: type[SchedulerKind], argument: str, of: str) -> float:
    """The finite number after the colon of a scheduler's name; its range is the caller's to check.

    Args:
        kind: the scheduler's class.
        argument: the text after the colon.
        of: what is expected, for messages.

    Raises:
        InputError: the argument is missing, is not a number, or is infinite or NaN.
    """
    try:
        number = float(argument)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        where = f"scheduler {kind.USAGE.partition(':')[0]}"
        found = repr(argument) if argument else "no value"
        raise InputError(where, found, of, f"For example {kind.EXAMPLE}.")
    return number
