"""Schedulers: how much of a drafted block is verified. One file a policy, one interface.

The interface cannot leak (paper section 3.2.2 and appendix A): a scheduler is asked slot by slot,
and for slot k it is shown the confidences of slots 1..k only, each of which depends on nothing but
tokens before the slot it judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..errors import InputError
from .full import FullScheduler
from .threshold import ThresholdScheduler


class Scheduler(Protocol):
    """A verification policy.

    Attributes:
        name: as `parse_scheduler` takes it.
        reads_confidence: False when `admit` ignores its argument; the round then needs no
            host synchronisation before the verify forward.
    """

    name: str
    reads_confidence: bool

    def admit(self, confidence: Sequence[float]) -> bool:
        """True to verify slot k = len(confidence), given the confidences of slots 1..k."""
        ...


def schedule(scheduler: Scheduler, confidence: Sequence[float], limit: int) -> int:
    """The verify length: slots admitted one after the other, at most `limit`."""
    for k in range(limit):
        if not scheduler.admit(tuple(confidence[: k + 1])):
            return k
    return limit


NAMES = ("auto", "full", "threshold:VALUE")


def parse_scheduler(text: str) -> Scheduler:
    """A scheduler from its name and optional argument: "full", "threshold:0.5", "auto".

    Raises:
        InputError: an unknown name, a missing or unusable argument.
    """
    name, _, argument = text.partition(":")
    if name in ("auto", "full") and not argument:
        return FullScheduler()
    if name == "threshold":
        return ThresholdScheduler.parse(argument)
    raise InputError("scheduler", repr(text), f"one of {', '.join(NAMES)}")
