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
