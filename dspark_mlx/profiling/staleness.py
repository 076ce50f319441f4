"""Checks whether a stored speed profile still holds on this machine."""

from __future__ import annotations

from collections.abc import Sequence

from ..engine.state import Engine
from ..schedulers.speed_profile import SpeedProfile
from .measure import spot_check

# Largest factors by which a profile's ratios, and its speed, may differ from a spot check.
_RATIO = 1.3
_FACTOR = 2.0


def why_stale(profile: SpeedProfile, engine: Engine, text: Sequence[int] = ()) -> str | None:
    """The reason why a profile no longer holds, from a spot check; None where it still holds.

    The key does not cover everything that speed depends on, such as the CPU's BLAS library or a
    laptop that runs on battery. A check of three forwards can be wrong, so a second one of nine
    must confirm it.

    Args:
        profile: the stored profile.
        engine: target and drafter.
        text: token ids that it was measured on, see `timing.Session`.
    """
    assert engine.drafter is not None
    block = engine.drafter.config.gamma + 1
    if profile.widths < block:
        return f"it has {profile.widths} widths and this block needs {block}"
    reason = None
    for repeats in (3, 9):
        found = spot_check(engine, profile.contexts[0], repeats, text)
        reason = difference(profile, block, *found)
        if reason is None:
            return None
    return reason


def difference(
    profile: SpeedProfile, block: int, single_ms: float, block_ms: float, draft_ms: float
) -> str | None:
    """The first difference between a spot check and a profile, in words; None where they agree.

    They agree when all ratios are within 30 % and the speed is within a factor of 2.

    Args:
        profile: the profile, of which the first context is compared.
        block: rows of the wider verify forward.
        single_ms, block_ms, draft_ms: milliseconds of a verify forward of one row, of one of
            `block` rows, and of a draft, measured now.
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
