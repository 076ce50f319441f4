"""Speed profiles of a test's own making."""

from __future__ import annotations

from collections.abc import Sequence

from dspark_mlx.schedulers.speed_profile import SpeedProfile


def hand_made_profile(
    verify: Sequence[float], draft: float, plain: float, contexts: Sequence[int] = (64,)
) -> SpeedProfile:
    """The same costs at every context."""
    rows = len(contexts)
    return SpeedProfile(
        name="hand made",
        key="",
        device="none",
        contexts=tuple(contexts),
        verify=(tuple(verify),) * rows,
        draft=(draft,) * rows,
        plain=(plain,) * rows,
        batches={},
        verify_spread=((0.0,) * len(verify),) * rows,
    )


JAGGED = (6.5, 8.0, 9.5, 11.0, 12.5, 15.0, 16.6, 13.9)


def jagged_profile(**changes) -> SpeedProfile:
    """Two contexts; at the second everything costs twice as much."""
    double = tuple(2 * ms for ms in JAGGED)
    values = {
        "name": "target with drafter",
        "key": "",
        "device": "a device",
        "contexts": (64, 1088),
        "verify": (JAGGED, double),
        "draft": (5.0, 10.0),
        "plain": (6.0, 12.0),
        "batches": {1: double, 2: double},
        "verify_spread": ((0.1,) * 8, (0.0,) * 8),
    }
    return SpeedProfile(**values | changes)
