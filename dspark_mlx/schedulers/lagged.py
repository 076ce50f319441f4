"""The scheduler that uses the confidences of earlier rounds only (paper, section 5.2).

The verify length is known before the draft is, so the round waits for the device only at its end.
The block's own confidences are not used, so a global search over the verify costs is lossless.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from .auto import AutoPolicy, AutoScheduler


class LaggedScheduler(AutoScheduler):
    """`AutoScheduler` whose policies do not get the block's own confidences."""

    USAGE: ClassVar[str] = "lagged"
    HELP: ClassVar[str] = "as auto, by the confidences of earlier rounds only"
    EXAMPLE: ClassVar[str] = "lagged"

    name = "lagged"

    def start(self, gamma: int, temperature: float = 0.0) -> LaggedPolicy:
        """See `Scheduler.start`."""
        return LaggedPolicy(self._memory, temperature, has_confidence=False)


class LaggedPolicy(AutoPolicy):
    """The policy of `LaggedScheduler` for one request."""

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        """See `Policy.admit`."""
        return super().admit(slot, ())
