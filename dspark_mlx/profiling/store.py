"""Stored speed profiles: a profile that a spot check confirms is used, else it is measured anew."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..progress import ProgressCallback
from ..schedulers.speed_profile import SpeedProfile, read_profile, write_profile
from ..system.files import cache_folder
from ..system.process import program
from ..system.system_errors import writing
from .measure import LIMIT, measure_profile, quick_profile
from .pair import Pair
from .staleness import why_stale

# A profile whose repeats differ by more is not stored: `staleness.difference` allows 30 % as well.
_NOISY = 0.3


@dataclass(frozen=True)
class Obtained:
    """A speed profile, and whether it was found, measured or imported.

    Attributes:
        profile: the profile of this pair on this device.
        measured: True when it was measured now.
        message: what was done and why, in one sentence.
        stale_reason: why the stored profile was not used, or why none can be stored; None where
            neither happened.
        kept: whether the profile is stored for the next run.
    """

    profile: SpeedProfile
    measured: bool
    message: str
    stale_reason: str | None = None
    kept: bool = True


def profile_path(key: str) -> Path:
    """The path of the stored profile with this key, which need not exist.

    Raises:
        InputError: see `cache_folder`.
    """
    return cache_folder() / "profiles" / f"{key}.json"


def learned_path(key: str) -> Path | None:
    """The path of what requests of the pair with this key have taught, see `PairMemory`.

    None where there is no cache folder.
    """
    try:
        return profile_path(key).with_suffix(".learned.json")
    except InputError:
        return None


def has_profile(key: str) -> bool:
    """Whether a profile with this key is stored; False where there is no cache folder."""
    try:
        return os.path.exists(profile_path(key))
    except InputError:
        return False


def read_stored(key: str) -> tuple[SpeedProfile | None, str | None]:
    """The stored profile with this key, if it can be used.

    Returns:
        The profile, or None; and the reason why a stored file cannot be used (it is damaged, or
        belongs to another pair), or None.
    """
    if not has_profile(key):
        return None, None
    path = profile_path(key)
    try:
        profile = read_profile(path)
    except InputError as error:
        return None, str(error)
    if profile.key != key:
        return None, f"{path}: found the profile of another pair ({profile.name})."
    return profile, None


def save(profile: SpeedProfile) -> Path:
    """Store a profile under its key, atomically, and return its path.

    Raises:
        InputError: the cache folder cannot be written.
    """
    path = profile_path(profile.key)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_profile(path, profile)
    return path


def forget(pair: Pair) -> Path | None:
    """Remove the pair's stored profile, and return its path; None where none is stored.

    What its requests have taught goes too.

    Raises:
        InputError: a file cannot be removed.
    """
    path = profile_path(pair.key())
    try:
        path.with_suffix(".learned.json").unlink(missing_ok=True)
        path.unlink()
    except FileNotFoundError:
        return None
    except OSError as error:
        found = f"no way to remove it ({error.strerror})"
        raise InputError(path, found, "a file in a writable folder") from error
    return path


def get_profile(
    pair: Pair,
    *,
    remeasure: bool = False,
    progress: ProgressCallback | None = None,
    limit: float = LIMIT,
) -> Obtained:
    """The pair's stored full profile if a spot check confirms it; else one measured and stored.

    A measurement whose repeats differ too much is used for this run only, and is not stored.

    Args:
        pair: target and drafter.
        remeasure: measure even if a profile is stored.
        progress, limit: see `measure.measure_profile`.

    Raises:
        InputError: a checkpoint's folder cannot be read.
    """
    key, stale_reason = pair.key(), None
    if not remeasure:
        found, stale_reason = read_stored(key)
        if found and found.quick:
            found = None
        reason = why_stale(found, pair.engine, pair.text) if found else None
        if found and reason is None:
            return Obtained(found, False, f"Found in {profile_path(key)}.")
        stale_reason = f"{profile_path(key)}: {reason}." if reason else stale_reason
    profile = measure_profile(
        pair.engine,
        pair.name,
        key,
        progress,
        max_length=pair.max_length,
        limit=limit,
        text=pair.text,
    )
    if profile.noise > _NOISY:
        message = (
            "Measured for this run only, and not to be imported elsewhere: the machine is too busy "
            f"or slow (repeats of one forward differ by {profile.noise:.0%}). Later: "
            f"{program('profile')} --remeasure"
        )
        return Obtained(profile, True, message, stale_reason, kept=False)
    return _stored(profile, stale_reason)


def _stored(profile: SpeedProfile, stale_reason: str | None) -> Obtained:
    """Store a profile that was measured now."""
    try:
        message = f"Measured and stored in {save(profile)}."
    except InputError as error:
        # A cache folder that is read-only must not stop decoding.
        stale_reason = stale_reason or "Speed profiles cannot be kept here."
        return Obtained(profile, True, f"Measured, not stored: {error}", stale_reason, kept=False)
    return Obtained(profile, True, message, stale_reason)


def get_quick_profile(pair: Pair, progress: ProgressCallback | None = None) -> Obtained:
    """The pair's stored profile, quick or full; else a quick one that is measured and stored.

    A stored one is not checked: schedulers correct it by the times of the rounds that they see.

    Args:
        pair: target and drafter.
        progress: see `measure.measure_profile`.

    Raises:
        InputError: a checkpoint's folder cannot be read.
    """
    drafter = pair.engine.drafter
    key, block = pair.key(), drafter.config.gamma + 1 if drafter else 1
    found, stale_reason = read_stored(key)
    if found and found.widths < block:
        stale_reason = (
            f"{profile_path(key)}: it has {found.widths} widths and this block needs {block}."
        )
    elif found:
        return Obtained(found, False, f"Found in {profile_path(key)}.")
    profile = quick_profile(
        pair.engine, pair.name, key, progress, max_length=pair.max_length, text=pair.text
    )
    return _stored(profile, stale_reason)


def read_importable(path: Path) -> SpeedProfile:
    """The profile in a file that `profile --export` wrote.

    Raises:
        InputError: see `read_profile`; or its measurement was too noisy to be kept where it was
            made.
    """
    profile = read_profile(path)
    if profile.noise > _NOISY:
        found = f"repeats of one forward that differ by {profile.noise:.0%}, or too few"
        expected = f"at most {_NOISY:.0%}, as of a measurement that is kept"
        hint = f"Measure again on a machine that is less busy: {program('profile')} --remeasure"
        raise InputError(path, found, expected, hint)
    return profile


def import_profile(pair: Pair, profile: SpeedProfile, where: object) -> Obtained:
    """Store a profile that was measured elsewhere as the pair's own.

    It is stored even where a spot check on this device disagrees, which `stale_reason` then says;
    `get_profile` checks it again at every use.

    Args:
        pair: the pair that gets the profile.
        profile: the profile, whose key is replaced.
        where: where it comes from, for messages.

    Raises:
        InputError: the profile lacks widths that the pair's block needs, or cannot be stored.
    """
    assert pair.engine.drafter is not None
    block = pair.engine.drafter.config.gamma + 1
    if profile.widths < block:
        raise InputError(where, f"widths 1 to {profile.widths}", f"1 to {block} or more")
    profile = dataclasses.replace(profile, key=pair.key())
    path, reason = save(profile), why_stale(profile, pair.engine, pair.text)
    message = f"Imported from {where} into {path}."
    return Obtained(profile, False, message, f"{path}: {reason}." if reason else None)
