"""Schedulers by name: one file each, which owns its settings, its argument and its help text.

A new scheduler is a file beside these and a line in `SCHEDULERS`; loading, replay, the flags and
the help texts read it from there.
"""

from __future__ import annotations

from ..calibration.by_temperature import Calibrations
from ..calibration.sts import Calibration
from ..errors import InputError
from . import PairFacts, Scheduler, SchedulerKind
from .auto import AutoScheduler
from .expected import ExpectedScheduler
from .fixed import FixedScheduler
from .full import FullScheduler
from .lagged import LaggedScheduler
from .prefix import PrefixScheduler
from .speed_profile import SpeedProfile
from .threshold import ThresholdScheduler

_KINDS: tuple[type[SchedulerKind], ...] = (
    AutoScheduler,
    ExpectedScheduler,
    LaggedScheduler,
    PrefixScheduler,
    FullScheduler,
    FixedScheduler,
    ThresholdScheduler,
)
SCHEDULERS: dict[str, type[SchedulerKind]] = {kind.USAGE.partition(":")[0]: kind for kind in _KINDS}


def usages() -> tuple[str, ...]:
    """What `--scheduler` takes, placeholders included."""
    return tuple(kind.USAGE for kind in SCHEDULERS.values())


def check_scheduler(scheduler: str | Scheduler) -> None:
    """Refuse what is neither a scheduler's name nor one.

    Raises:
        InputError: an unknown name, an unusable argument, or an object of another kind.
    """
    if isinstance(scheduler, str):
        needs_profile(scheduler)
    elif not all(hasattr(scheduler, name) for name in ("name", "start", "needs_confidence")):
        expected = "a name, or an object as schedulers.Scheduler"
        raise InputError("scheduler", repr(scheduler), expected)


def needs_profile(name: str) -> bool:
    """True for a scheduler that cannot be made without a speed profile; "auto" can.

    Raises:
        InputError: an unknown name, a missing or unusable argument.
    """
    kind, argument = _kind(name)
    if not kind.NEEDS_PROFILE:
        kind.make(argument, PairFacts())  # refuses an argument that means nothing
    return kind.NEEDS_PROFILE


def make_scheduler(
    name: str,
    profile: SpeedProfile | None = None,
    calibration: Calibration | Calibrations | None = None,
    has_confidence: bool = True,
) -> Scheduler:
    """A scheduler from its name: "full", "threshold:0.5", "expected", ...

    Args:
        name: see `SCHEDULERS`.
        profile, calibration, has_confidence: see `PairFacts`.

    Raises:
        InputError: an unknown name, an unusable argument, or no profile where one is needed.
    """
    kind, argument = _kind(name)
    return kind.make(argument, PairFacts(profile, calibration, has_confidence))


def _kind(name: str) -> tuple[type[SchedulerKind], str]:
    base, _, argument = name.partition(":")
    kind = SCHEDULERS.get(base)
    if kind is None or (":" in name and ":" not in kind.USAGE):
        raise InputError("scheduler", repr(name), f"one of {', '.join(usages())}")
    return kind, argument
