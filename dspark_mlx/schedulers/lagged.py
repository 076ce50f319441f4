"""Paper section 5.2: the width comes from the confidences of earlier rounds.

It is known before the draft is, so the round needs no host synchronisation in its middle, and no
confidence of the block itself can leak; a global search over the jagged cost curve is then allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from .expected import ExpectedPolicy, ExpectedScheduler


class LaggedScheduler(ExpectedScheduler):
    """`ExpectedScheduler` that is never shown the block's own confidences."""

    USAGE: ClassVar[str] = "lagged"
    HELP: ClassVar[str] = "as expected, by the confidences of earlier rounds only"
    EXAMPLE: ClassVar[str] = "lagged"

    name = "lagged"

    def start(self, gamma: int, temperature: float = 0.0) -> LaggedPolicy:
        """See `Scheduler.start`."""
        profile = self._profile.sampled if temperature else self._profile
        return LaggedPolicy(profile, self._prior.at(temperature), reads_confidence=False)


class LaggedPolicy(ExpectedPolicy):
    """One request of `LaggedScheduler`."""

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        """See `Policy.admit`."""
        return super().admit(slot, ())
