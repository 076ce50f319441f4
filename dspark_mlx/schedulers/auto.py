"""The default: scheduling by the speed profile where there is one, whole blocks where not."""

from __future__ import annotations

from typing import ClassVar

from . import PairFacts, Scheduler
from .expected import ExpectedScheduler
from .full import FullScheduler


class AutoScheduler(FullScheduler):
    """Makes `ExpectedScheduler` of a measured pair, and `FullScheduler` of another."""

    USAGE: ClassVar[str] = "auto"
    HELP: ClassVar[str] = "expected where this pair was measured on this device, else full"
    EXAMPLE: ClassVar[str] = "auto"

    @classmethod
    def make(cls, argument: str, pair: PairFacts) -> Scheduler:
        """See `SchedulerKind.make`."""
        measured = pair.profile is not None and pair.calibration is not None
        return (ExpectedScheduler if measured else FullScheduler).make(argument, pair)
