"""The store of speed profiles: one that is found and still true is used, else it is measured."""

from __future__ import annotations

import dataclasses
import os
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
from ..system.system_errors import writing
from .measure import LIMIT, measure_profile, spot_check

# A profile is trusted within 30 %, see `difference`: repeats that differ by as much say nothing.
_NOISY = 0.3
_RATIO = 1.3
_FACTOR = 2.0


@dataclass(frozen=True)
class Pair:
    """What a profile is of.

    Attributes:
        engine: target and drafter; the scheduler does not count.
        target, drafter: the folders they were loaded from.
        precision: as `load` took it.
        max_length: positions the target was made for.
    """

    engine: Engine
    target: Path
    drafter: Path
    precision: str
    max_length: int | None = None

    @classmethod
    def of(cls, decoder: Decoder) -> Pair:
        """The pair that a decoder decodes with.

        Raises:
            InputError: it has no drafter.
        """
        target, drafter = decoder.target_folder, decoder.drafter_folder
        if decoder.engine.drafter is None or drafter is None:
            raise InputError("speed profile", "no drafter", "a target with its drafter")
        return cls(decoder.engine, target, drafter, decoder.precision, decoder.max_length)

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.target.name} with {self.drafter.name}"

    def key(self) -> str:
        """See `fingerprint`; the weights are looked at once."""
        return self._key

    @cached_property
    def _key(self) -> str:
        drafter = self.engine.drafter
        assert drafter is not None
        size = drafter.vocabulary_size
        return fingerprint(self.target, self.drafter, self.precision, drafter.config.gamma, size)


@dataclass(frozen=True)
class Obtained:
    """A profile, and how it was come by.

    Attributes:
        profile: of this pair, on this device.
        measured: False when it was found in the store.
        message: what was done and why, one sentence.
        stale_reason: what is wrong with the stored one, or with the store; None when nothing is.
        kept: whether the next run will find it.
    """

    profile: SpeedProfile
    measured: bool
    message: str
    stale_reason: str | None = None
    kept: bool = True


def profile_path(key: str) -> Path:
    """Where the profile of a key is kept.

    Raises:
        InputError: see `cache_folder`.
    """
    return cache_folder() / "profiles" / f"{key}.json"


def has_profile(key: str) -> bool:
    """Whether a profile of a key is kept; False where there is no cache, or none to be read."""
    try:
        return os.path.exists(profile_path(key))
    except InputError:
        return False


def read_stored(key: str) -> tuple[SpeedProfile | None, str | None]:
    """The profile of a key, None when there is none to use.

    Returns:
        The profile, and why a file that is there was not used: damaged, or another pair's.
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
    """Keep a profile under its key, atomically; returns where.

    Raises:
        InputError: the cache folder cannot be written.
    """
    path = profile_path(profile.key)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_profile(path, profile)
    return path


def why_stale(profile: SpeedProfile, engine: Engine) -> str | None:
    """What is no longer as it was measured, None when a spot check finds nothing.

    The key does not hold everything that speed depends on: another BLAS library on the CPU, a
    laptop on battery. A first look of three forwards can be wrong, so a second one confirms it.
    """
    assert engine.drafter is not None
    block = engine.drafter.config.gamma + 1
    if profile.widths < block:
        return f"it has {profile.widths} widths and this block needs {block}"
    reason = None
    for repeats in (3, 9):
        reason = difference(profile, block, *spot_check(engine, profile.contexts[0], repeats))
        if reason is None:
            return None
    return reason


def difference(
    profile: SpeedProfile, block: int, single_ms: float, block_ms: float, draft_ms: float
) -> str | None:
    """Compare a spot check with a profile: its ratios within 30 %, its speed within a factor 2.

    Args:
        profile: its first context is compared.
        block: rows of the second forward.
        single_ms, block_ms, draft_ms: verify of one row, of `block` rows, and a draft now.
    """
    verify = profile.verify[0]
    checks = (
        ("a verify forward of 1 row takes", " ms", single_ms, verify[0], _FACTOR),
        (f"{block} rows cost", " times 1 row", block_ms / single_ms, verify[block - 1] / verify[0]),
        ("a draft costs", " times 1 row", draft_ms / single_ms, profile.draft[0] / verify[0]),
    )
    for what, unit, now, then, *factor in checks:
        allowed = factor[0] if factor else _RATIO
        if not then / allowed <= now <= then * allowed:
            return f"{what} {now:.2f}{unit} now, {then:.2f} when it was measured"
    return None


def forget(pair: Pair) -> Path | None:
    """Remove the pair's stored profile; returns which file, None when there is none.

    Raises:
        InputError: it cannot be removed.
    """
    path = profile_path(pair.key())
    try:
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
    """The pair's stored profile if a spot check agrees with it; else it is measured and stored.

    A measurement whose repeats differ too much is for this run only, and a stored one stays.

    Args:
        pair: what is asked for.
        remeasure: do not look for a stored one.
        progress, limit: see `measure`.

    Raises:
        InputError: folders that cannot be read.
    """
    key, stale_reason = pair.key(), None
    if not remeasure:
        found, stale_reason = read_stored(key)
        reason = why_stale(found, pair.engine) if found else None
        if found and reason is None:
            return Obtained(found, False, f"Found in {profile_path(key)}.")
        stale_reason = f"{profile_path(key)}: {reason}." if reason else stale_reason
    length = pair.max_length
    profile = measure_profile(pair.engine, pair.name, key, progress, max_length=length, limit=limit)
    if profile.noise > _NOISY:
        message = (
            f"Measured for this run only: the machine is too busy or slow (repeats of one forward "
            f"differ by {profile.noise:.0%}). Later: python -m dspark_mlx.profile --remeasure"
        )
        return Obtained(profile, True, message, stale_reason, kept=False)
    try:
        message = f"Measured and stored in {save(profile)}."
    except InputError as error:
        # A read-only home must not keep anyone from decoding.
        stale_reason = stale_reason or "Speed profiles cannot be kept here."
        return Obtained(profile, True, f"Measured, not stored: {error}", stale_reason, kept=False)
    return Obtained(profile, True, message, stale_reason)


def import_profile(pair: Pair, profile: SpeedProfile, where: object) -> Obtained:
    """Store a profile made elsewhere as this pair's; `stale_reason` says if this device disagrees.

    It is stored all the same, because it was asked for; `obtain` checks it at every use.

    Args:
        pair: whose profile it becomes.
        profile: its key is replaced.
        where: it comes from, for messages.

    Raises:
        InputError: it lacks widths that the pair's block needs, or cannot be stored.
    """
    assert pair.engine.drafter is not None
    block = pair.engine.drafter.config.gamma + 1
    if profile.widths < block:
        raise InputError(where, f"widths 1 to {profile.widths}", f"1 to {block} or more")
    profile = dataclasses.replace(profile, key=pair.key())
    path, reason = save(profile), why_stale(profile, pair.engine)
    message = f"Imported from {where} into {path}."
    return Obtained(profile, False, message, f"{path}: {reason}." if reason else None)
