"""The default: optimal stopping over the measured speed profile, which parks where no draft pays.

Slot k is admitted while some later stopping point, k included, is worth more than stopping before
it. What lies beyond the confidences that may be seen enters by its expectation only, never by its
realised value, so cliffs in the verify cost are crossed without leaking (paper, appendix A).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ..calibration.by_temperature import Calibrations
from ..calibration.sts import Calibration
from ..types import Round
from . import PairFacts, Scheduler
from .belief import Belief
from .pace import Pace, best_length, highest_rate, long_run_rate
from .speed_profile import Costs, SpeedProfile

_MIN_GAIN = 1.05
# Costs change slowly with the context.
_RECHECK = 32


class ExpectedScheduler:
    """See the module.

    Args:
        profile: measured of the pair and device.
        prior: the drafter's calibration, or those by sampling temperature.
        reads_confidence: False for a drafter without a confidence head, whose accepted counts are
            then all there is to learn from.
    """

    USAGE: ClassVar[str] = "expected"
    HELP: ClassVar[str] = "the stopping point worth most tokens per second, or none where none pays"
    EXAMPLE: ClassVar[str] = "expected"
    NEEDS_PROFILE: ClassVar[bool] = True

    name = "expected"
    needs_confidence = False

    def __init__(
        self,
        profile: SpeedProfile,
        prior: Calibration | Calibrations,
        reads_confidence: bool = True,
    ) -> None:
        self._profile = profile
        self._prior = prior
        self._reads_confidence = reads_confidence

    @classmethod
    def make(cls, argument: str, pair: PairFacts) -> Scheduler:
        """See `SchedulerKind.make`."""
        return cls(*pair.measured(cls.name), pair.has_confidence)

    def start(self, gamma: int, temperature: float = 0.0) -> ExpectedPolicy:
        """See `Scheduler.start`."""
        profile = self._profile.sampled if temperature else self._profile
        return ExpectedPolicy(profile, self._prior.at(temperature), self._reads_confidence)


class ExpectedPolicy:
    """One request of `ExpectedScheduler`."""

    def __init__(self, profile: SpeedProfile, prior: Calibration, reads_confidence: bool) -> None:
        self.reads_confidence = reads_confidence
        self._profile = profile
        self._prior = prior
        self._belief = Belief(prior)
        self._costs: Costs | None = None
        self._limit = 0
        self._shown: Sequence[float] | None = None
        self._best = 0
        self._pace: Pace | None = None

    def park(self, context: int, limit: int) -> int:
        """See `Policy.park`."""
        self._limit = limit
        costs = self._costs = self._profile.at(context)
        # Where no draft could pay, not even one is made to see: each would cost several steps.
        if highest_rate(costs, limit) <= _MIN_GAIN:
            return _RECHECK
        if self._pace is None:
            self._pace = Pace(long_run_rate(self._prior.typical, costs))
        return self._pace.park()

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        """See `Policy.admit`."""
        assert self._costs is not None and self._pace is not None
        # When greedy all slots are asked about with the same list, and the answer is one.
        if seen is not self._shown or slot == 0:
            survival, rate = self._belief.survival(seen), self._pace.rate
            self._shown = seen
            self._best, _ = best_length(survival, self._costs, rate, slot, self._limit)
        return self._best > slot

    def learn(self, round_: Round) -> None:
        """See `Policy.learn`."""
        if self._costs is None or self._pace is None:
            return  # the last token of a request of two needs no plan
        if not round_.drafted:
            self._pace.step()
            return
        survival = self._belief.survival(round_.confidence)
        steps = (self._costs.draft + self._costs.verify[round_.scheduled]) / self._costs.plain
        expected = 1.0 + sum(survival[: round_.scheduled])
        self._pace.learn(expected, len(round_.tokens), steps)
        self._belief.learn(round_)
