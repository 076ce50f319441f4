"""The default: optimal stopping over the measured speed profile, which parks where no draft pays.

Slot k is admitted while some later stopping point, k included, is worth more than stopping before
it. What lies beyond the confidences that may be seen enters by its expectation only, never by its
realised value, so cliffs in the verify cost are crossed without leaking (paper, appendix A).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..calibration import Calibration
from ..speed import Costs, SpeedProfile
from ..types import Round
from .belief import Belief
from .pace import Pace, best_length


class ExpectedScheduler:
    """See the module.

    Args:
        profile: measured of the pair and device.
        calibration: of the drafter.
        reads_confidence: False for a drafter without a confidence head, whose accepted counts are
            then all there is to learn from.
    """

    name = "expected"
    needs_confidence = False

    def __init__(
        self, profile: SpeedProfile, calibration: Calibration, reads_confidence: bool = True
    ) -> None:
        self._profile = profile
        self._calibration = calibration
        self._reads_confidence = reads_confidence

    def start(self, gamma: int) -> ExpectedPolicy:
        """See `Scheduler.start`."""
        return ExpectedPolicy(self._profile, self._calibration, self._reads_confidence)


class ExpectedPolicy:
    """One request of `ExpectedScheduler`."""

    def __init__(self, profile: SpeedProfile, prior: Calibration, reads_confidence: bool) -> None:
        self.reads_confidence = reads_confidence
        self._profile = profile
        self._belief = Belief(prior)
        self._costs: Costs | None = None
        self._limit = 0
        self._pace: Pace | None = None

    def park(self, context: int, limit: int) -> int:
        """See `Policy.park`."""
        self._limit = limit
        costs = self._costs = self._profile.at(context)
        if self._pace is None:
            self._pace = Pace(_best_rate(self._belief.survival(()), costs))
        return self._pace.park()

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        """See `Policy.admit`."""
        assert self._costs is not None and self._pace is not None
        survival = self._belief.survival(seen)
        best, _ = best_length(survival, self._costs, self._pace.rate, slot, self._limit)
        return best > slot

    def learn(self, done: Round) -> None:
        """See `Policy.learn`."""
        if self._costs is None or self._pace is None:
            return  # the last token of a request of two needs no plan
        if not done.drafted:
            self._pace.step()
            return
        survival = self._belief.survival(done.confidence)
        steps = (self._costs.draft + self._costs.verify[done.scheduled]) / self._costs.plain
        expected = 1.0 + sum(survival[: done.scheduled])
        self._pace.learn(expected, len(done.tokens), steps)
        self._belief.learn(done)


def _best_rate(survival: Sequence[float], costs: Costs) -> float:
    """The best rate of a fixed length, tokens per plain step's time."""
    tokens, best = 1.0, 0.0
    for length in range(len(survival) + 1):
        tokens += survival[length - 1] if length else 0.0
        best = max(best, tokens * costs.plain / (costs.draft + costs.verify[length]))
    return best
