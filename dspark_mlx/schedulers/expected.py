"""The default scheduler of a measured pair: optimal stopping, and plain steps where drafts lose.

Slot k is admitted while stopping somewhere from k on is worth more than stopping before k. Slots
whose confidences may not be seen yet count with their expected confidences, never with their actual
ones. So the search can pass widths whose verify cost jumps, without seeing a token that it judges
(paper, appendix A).
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
# Plain steps before the costs are looked at again; they change slowly with the context.
_RECHECK = 32


class ExpectedScheduler:
    """Verifies the length that is worth most tokens per second, and parks when drafts lose time.

    Args:
        profile: speed profile of the pair on this device.
        prior: the drafter's calibration, or its calibrations by sampling temperature.
        reads_confidence: False for a drafter without a confidence head; policies then learn from
            accepted counts alone.
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
    """The policy of `ExpectedScheduler` for one request."""

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
        # Where not even full acceptance pays, no draft is tried: each costs several plain steps.
        if highest_rate(costs, limit) <= _MIN_GAIN:
            return _RECHECK
        if self._pace is None:
            self._pace = Pace(long_run_rate(self._prior.typical, costs))
        return self._pace.park()

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        """See `Policy.admit`."""
        assert self._costs is not None and self._pace is not None
        # A deterministic request passes the same list for all slots, and needs one search.
        if seen is not self._shown or slot == 0:
            survival, rate = self._belief.survival(seen), self._pace.rate
            self._shown = seen
            self._best, _ = best_length(survival, self._costs, rate, slot, self._limit)
        return self._best > slot

    def learn(self, round_: Round) -> None:
        """See `Policy.learn`."""
        if self._costs is None or self._pace is None:
            return  # no round of this request could draft yet
        if not round_.drafted:
            self._pace.step()
            return
        survival = self._belief.survival(round_.confidence)
        steps = (self._costs.draft + self._costs.verify[round_.scheduled]) / self._costs.plain
        expected = 1.0 + sum(survival[: round_.scheduled])
        self._pace.learn(expected, len(round_.tokens), steps)
        self._belief.learn(round_)
