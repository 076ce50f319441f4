"""Schedulers by name; each is one file with its settings, its argument and its help text.

To add a scheduler, add a file beside this one and a line to `_KINDS`, from which `SCHEDULERS` is
made; loading, replay, the flags and the help texts read that.
"""

from __future__ import annotations

from pathlib import Path

from ..calibration.by_temperature import Calibrations
from ..calibration.sts import Calibration
from ..errors import InputError, did_you_mean
from . import PairFacts, Scheduler, SchedulerKind
from .auto import AutoScheduler
from .fixed import FixedScheduler
from .full import FullScheduler
from .lagged import LaggedScheduler
from .prefix import PrefixScheduler
from .speed_profile import SpeedProfile
from .threshold import ThresholdScheduler

_KINDS: tuple[type[SchedulerKind], ...] = (
    AutoScheduler,
    LaggedScheduler,
    PrefixScheduler,
    FullScheduler,
    FixedScheduler,
    ThresholdScheduler,
)
SCHEDULERS: dict[str, type[SchedulerKind]] = {kind.USAGE.partition(":")[0]: kind for kind in _KINDS}


def usages() -> tuple[str, ...]:
    """All values of `--scheduler`, with placeholders for arguments."""
    return tuple(kind.USAGE for kind in SCHEDULERS.values())


def check_scheduler(scheduler: str | Scheduler) -> None:
    """Refuse a value that is neither a scheduler's name nor a scheduler.

    Raises:
        InputError: the name is unknown, its argument is not usable, or the object does not have
            the members of `Scheduler`.
    """
    if isinstance(scheduler, str):
        needs_profile(scheduler)
    elif not all(hasattr(scheduler, name) for name in ("name", "start", "needs_confidence")):
        expected = "a name, or an object with the members of schedulers.Scheduler"
        raise InputError("scheduler", repr(scheduler), expected)


def needs_profile(name: str) -> bool:
    """True for a scheduler that cannot be made without a speed profile.

    Raises:
        InputError: the name is unknown, or its argument is missing or not usable.
    """
    kind, argument = _kind(name)
    if not kind.NEEDS_PROFILE:
        kind.make(argument, PairFacts())  # refuses an unusable argument
    return kind.NEEDS_PROFILE


def make_scheduler(
    name: str,
    profile: SpeedProfile | None = None,
    calibration: Calibration | Calibrations | None = None,
    has_confidence: bool = True,
    memory: Path | None = None,
) -> Scheduler:
    """A scheduler from its name: "full", "threshold:0.5", "auto", ...

    Args:
        name: see `SCHEDULERS`.
        profile, calibration, has_confidence, memory: see `PairFacts`.

    Raises:
        InputError: the name is unknown, its argument is not usable, or the scheduler needs a
            profile and there is none.
    """
    kind, argument = _kind(name)
    return kind.make(argument, PairFacts(profile, calibration, has_confidence, memory))


def _kind(name: str) -> tuple[type[SchedulerKind], str]:
    base, _, argument = name.partition(":")
    kind = SCHEDULERS.get(base)
    if kind is None or (":" in name and ":" not in kind.USAGE):
        hint = did_you_mean(base, set(SCHEDULERS) - {base})
        raise InputError("scheduler", repr(name), f"one of {', '.join(usages())}", hint)
    return kind, argument
