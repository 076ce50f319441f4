"""Stored speed profiles: a profile that a spot check confirms is used, else it is measured anew."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..checkpoint.fingerprint import fingerprint
from ..decoder import Decoder
from ..engine.state import Engine
from ..errors import InputError
from ..progress import ProgressCallback
from ..schedulers.speed_profile import SpeedProfile, read_profile, write_profile
from ..system.files import cache_folder
from ..system.process import program
from ..system.system_errors import writing
from ..targets.deepseek_v4.machines import is_spread
from ..targets.given import network_digest
from ..text.prompt_files import SAMPLE, read_prompts
from ..text.tokenizer_files import has_tokenizer
from .measure import LIMIT, measure_profile, quick_profile
from .staleness import why_stale

# A profile whose repeats differ by more is not stored: `staleness.difference` allows 30 % as well.
_NOISY = 0.3


@dataclass(frozen=True)
class Pair:
    """A target and a drafter that a profile is measured for.

    Attributes:
        engine: the engine of both; its scheduler is not used.
        target, drafter: the folders that they were loaded from; no drafter for a target that drafts
            by copies alone.
        precision: the precision that they were loaded with, see `load`.
        max_length: positions that the target was made for; None where it does not say.
        encode: text to the target's token ids; None without a tokenizer.
        adapter: folder of the target's adapter; None without one.
        given: whether the target was given as a network, so that `target` is no folder.
    """

    engine: Engine
    target: Path
    drafter: Path | None
    precision: str
    max_length: int | None = None
    encode: Callable[[str], list[int]] | None = None
    adapter: Path | None = None
    given: bool = False

    @classmethod
    def of(cls, decoder: Decoder, alone: bool = False) -> Pair:
        """The pair of a decoder.

        Args:
            decoder: target and drafter.
            alone: whether the target may be without a drafter, for copies.

        Raises:
            InputError: the decoder has no drafter, and `alone` is False.
        """
        target, drafter = decoder.target_folder, decoder.drafter_folder
        if not alone and (decoder.engine.drafter is None or drafter is None):
            raise InputError("speed profile", "no drafter", "a target with its drafter")
        encodes = decoder.is_given or has_tokenizer(target)
        return cls(
            decoder.engine,
            target,
            drafter,
            decoder.precision,
            decoder.max_length,
            decoder.encode if encodes else None,
            decoder.adapter_folder,
            decoder.is_given,
        )

    @property
    def name(self) -> str:
        """The names of both folders, for messages."""
        return f"{self.target.name} with {self.drafter.name if self.drafter else 'copies'}"

    @cached_property
    def text(self) -> list[int]:
        """Token ids of a text to measure on, of the prompts that ship with the package; none
        without a tokenizer that can be used."""
        if self.encode is None:
            return []
        try:
            return self.encode("\n\n".join(line.turns[0] for line in read_prompts(SAMPLE)))
        except InputError:
            # A request that needs the tokenizer says what is wrong with it; ids alone decode.
            return []

    def key(self) -> str:
        """Key of the pair's profile, see `fingerprint`; it is computed once."""
        return self._key

    @cached_property
    def _key(self) -> str:
        drafter = self.engine.drafter
        gamma, size = (drafter.config.gamma, drafter.vocabulary_size) if drafter else (0, 0)
        held = self.engine.target
        # On several machines a forward costs something else.
        own = self.given or is_spread(held.model)
        target = network_digest(held.model) if own else self.target
        # Verify forwards of an exact target cost something else, and compiled ones too.
        ways = {"exact": held.exact, "compiled": held.compiled is not None}
        settings = held.cache_settings.key() | {way: True for way, used in ways.items() if used}
        windows = drafter.config.attended if drafter else ()
        drafted = self.drafter, self.precision, gamma, size
        return fingerprint(target, *drafted, settings, self.adapter, windows)


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
