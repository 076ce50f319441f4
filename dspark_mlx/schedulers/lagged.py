"""The scheduler that uses the confidences of earlier rounds only (paper, section 5.2).

The verify length is known before the draft is, so the round waits for the device only at its end.
The block's own confidences are not used, so a global search over the verify costs is lossless.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from .expected import ExpectedPolicy, ExpectedScheduler


class LaggedScheduler(ExpectedScheduler):
    """`ExpectedScheduler` whose policies do not get the block's own confidences."""

    USAGE: ClassVar[str] = "lagged"
    HELP: ClassVar[str] = "as expected, by the confidences of earlier rounds only"
    EXAMPLE: ClassVar[str] = "lagged"

    name = "lagged"

    def start(self, gamma: int, temperature: float = 0.0) -> LaggedPolicy:
        """See `Scheduler.start`."""
        profile = self._profile.sampled if temperature else self._profile
        return LaggedPolicy(profile, self._prior.at(temperature), reads_confidence=False)


class LaggedPolicy(ExpectedPolicy):
    """The policy of `LaggedScheduler` for one request."""

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        """See `Policy.admit`."""
        return super().admit(slot, ())
