"""Adds a scheduler to a decoder, with the speed profile that it needs."""

from __future__ import annotations

import warnings

from ..decoder import Decoder
from ..engine.state import Engine
from ..profiling.pair import Pair
from ..profiling.store import get_quick_profile, learned_path
from ..progress import progress_bar
from ..schedulers import Scheduler
from ..schedulers.copies import CopyScheduler
from ..schedulers.make import make_scheduler, needs_profile
from ..schedulers.speed_profile import SpeedProfile
from ..targets.network import refusing
from ..targets.self_check import check_rollback


def scheduled(decoder: Decoder, scheduler: str | Scheduler) -> Decoder:
    """The decoder with a scheduler; a speed profile is found or measured where it needs one."""
    if not isinstance(scheduler, str):
        return decoder.with_scheduler(scheduler)
    drafter = decoder.engine.drafter
    if drafter is None:
        return decoder
    profile, memory = None, None
    if needs_profile(scheduler):
        pair = Pair.of(decoder)
        profile, memory = _profile(pair), learned_path(pair.key())
    has_confidence = drafter.config.has_confidence
    made = make_scheduler(scheduler, profile, drafter.calibrations, has_confidence, memory)
    return decoder.with_scheduler(made, profile)


def copying(decoder: Decoder) -> Decoder:
    """The decoder of a target alone, drafting by copies of earlier text."""
    target = decoder.engine.target
    with refusing(decoder.target_folder):
        check_rollback(target, decoder.target_folder)
    pair = Pair.of(decoder, alone=True)
    profile = _profile(pair)
    scheduler = CopyScheduler(profile, learned_path(pair.key()))
    return decoder.with_engine(Engine(target, None, scheduler, profile), None)


def _profile(pair: Pair) -> SpeedProfile:
    """The pair's speed profile, stored or measured quickly now."""
    with progress_bar("Measuring speed, a few seconds", "pass", delay=1.0) as progress:
        obtained = get_quick_profile(pair, progress)
    if obtained.stale_reason:
        warnings.warn(f"{obtained.stale_reason} {obtained.message}", stacklevel=4)
    return obtained.profile
