"""The default scheduler: `expected` for a measured pair, else `full`."""

from __future__ import annotations

from typing import ClassVar

from . import PairFacts, Scheduler
from .expected import ExpectedScheduler
from .full import FullScheduler


class AutoScheduler(FullScheduler):
    """Makes an `ExpectedScheduler` for a measured pair, and a `FullScheduler` for others."""

    USAGE: ClassVar[str] = "auto"
    HELP: ClassVar[str] = "expected where this pair was measured on this device, else full"
    EXAMPLE: ClassVar[str] = "auto"

    @classmethod
    def make(cls, argument: str, pair: PairFacts) -> Scheduler:
        """See `SchedulerKind.make`."""
        measured = pair.profile is not None and pair.calibration is not None
        return (ExpectedScheduler if measured else FullScheduler).make(argument, pair)
