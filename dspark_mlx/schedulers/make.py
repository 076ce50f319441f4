"""Schedulers by name."""

from __future__ import annotations

from ..calibration.by_temperature import Calibrations
from ..calibration.sts import Calibration
from ..errors import InputError
from . import Scheduler
from .expected import ExpectedScheduler
from .fixed import FixedScheduler
from .full import FullScheduler
from .lagged import LaggedScheduler
from .prefix import PrefixScheduler
from .speed_profile import SpeedProfile
from .threshold import ThresholdScheduler

NAMES = ("auto", "expected", "lagged", "prefix", "full", "fixed:N", "threshold:VALUE")
_BY_PROFILE = ("expected", "lagged", "prefix")


def needs_profile(name: str) -> bool:
    """True for a scheduler that cannot be made without a speed profile; "auto" can.

    Raises:
        InputError: an unknown name, a missing or unusable argument.
    """
    if _by_argument(name):
        return False
    if name not in ("auto", "full", *_BY_PROFILE):
        raise InputError("scheduler", repr(name), f"one of {', '.join(NAMES)}")
    return name in _BY_PROFILE


def make_scheduler(
    name: str,
    profile: SpeedProfile | None = None,
    calibration: Calibration | Calibrations | None = None,
    has_confidence: bool = True,
) -> Scheduler:
    """A scheduler from its name: "full", "threshold:0.5", "expected", ...

    Args:
        name: "auto" is "expected" with a profile and "full" without.
        profile: of the pair and device.
        calibration: the drafter's, one or by sampling temperature.
        has_confidence: False for a drafter without a confidence head.

    Raises:
        InputError: an unknown name, an unusable argument, or no profile where one is needed.
    """
    needs_profile(name)  # refuses what is no name
    if name == "full" or (name == "auto" and (profile is None or calibration is None)):
        return FullScheduler()
    if scheduler := _by_argument(name):
        return scheduler
    if profile is None or calibration is None:
        raise InputError(f"scheduler {name}", "no speed profile", "one of this pair and device")
    if profile.widths <= calibration.gamma:
        found = f"widths 1 to {profile.widths} of {profile.name}"
        raise InputError("speed profile", found, f"1 to {calibration.gamma + 1} at least")
    if name == "prefix":
        return PrefixScheduler(profile)
    kind = LaggedScheduler if name == "lagged" else ExpectedScheduler
    return kind(profile, calibration, has_confidence)


def _by_argument(name: str) -> Scheduler | None:
    base, _, argument = name.partition(":")
    if base == "threshold":
        return ThresholdScheduler.parse(argument)
    return FixedScheduler.parse(argument) if base == "fixed" else None
