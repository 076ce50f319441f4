"""The default scheduler: optimal stopping by learned chances and times, plain steps where it loses.

Slot k is admitted while stopping somewhere from k on is worth more than stopping before k. Slots
whose confidences may not be seen yet count with their expected confidences, never with their actual
ones. So the search can pass widths whose verify cost jumps, without seeing a token that it judges
(paper, appendix A).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ..types import Decision, Round
from . import PairFacts, Scheduler
from .belief import Belief
from .copies import WIDEST, CopyChoice
from .memory import PairMemory
from .pace import Pace, best_length, best_rate, highest_rate
from .proposer import DRAFTER, LOOKUP, Offer, ProposerState
from .speed_profile import Costs

# The rate with every draft accepted that drafts must reach to pay: to accept 95 % of slots is rare,
# and makes 6.7 tokens of a round of 8.
_LEAST_RATE = 1.15
# A profile that is wrong by less than this could hide that drafts pay.
_DOUBT = 1.5
# Plain steps before the costs are looked at again; they change slowly with the context. Sooner
# where no plain step was timed yet, since only a profile says then that drafts lose.
_RECHECK = 32
_FIRST_LOOK = 8
# A block's price in plain steps that has changed by this factor is another one.
_REPRICED = 1.1
# Plain steps that a trial of a round's time may lose, for each plain step before it. The first one
# loses more than is expected: its draft takes in the prompt and all that came after.
_TRIAL_SHARE = 0.01
# Plain steps that are timed, the first and the last apart, where none were for long.
_TIMED_STEPS = 5
# Rounds this much faster than plain decoding leave no doubt about it.
_CLEAR = 2.2


class AutoScheduler:
    """Verifies the length that is worth most tokens per second, and parks when drafts lose time.

    Args:
        memory: what is known of the pair, and what its requests learn.
        has_confidence: False for a drafter without a confidence head; policies then learn from
            accepted counts alone.
    """

    USAGE: ClassVar[str] = "auto"
    HELP: ClassVar[str] = "the stopping point worth most tokens per second, or none where none pays"
    EXAMPLE: ClassVar[str] = "auto"
    NEEDS_PROFILE: ClassVar[bool] = True

    name = "auto"
    needs_confidence = False

    def __init__(self, memory: PairMemory, has_confidence: bool = True) -> None:
        self._memory = memory
        self._has_confidence = has_confidence

    @classmethod
    def make(cls, argument: str, pair: PairFacts) -> Scheduler:
        """See `SchedulerKind.make`."""
        profile, calibrations = pair.measured(cls.name)
        memory = PairMemory(profile.widened(WIDEST), calibrations, pair.memory)
        return cls(memory, pair.has_confidence)

    def start(self, gamma: int, temperature: float = 0.0) -> AutoPolicy:
        """See `Scheduler.start`."""
        return AutoPolicy(self._memory, temperature, self._has_confidence)


class AutoPolicy:
    """The policy of `AutoScheduler` for one request.

    Args:
        memory, has_confidence: see `AutoScheduler`.
        temperature: the request's sampling temperature.

    Attributes:
        reads_confidence: see `Policy`; chosen anew for every drafted round.
    """

    def __init__(self, memory: PairMemory, temperature: float, has_confidence: bool) -> None:
        self.reads_confidence = self._has_confidence = has_confidence
        self.decision: Decision | None = None
        self._memory = memory
        self._temperature = temperature
        self._times = memory.times(temperature)
        self._waiting = memory.waiting(temperature)
        self._drafter = ProposerState(memory.prior(temperature))
        self._copies = CopyChoice(self._times)
        self._pace = Pace(1.0)
        self._rate = 1.0
        self._context = self._limit = 0
        self._costs: Costs | None = None
        self._stretch = self._plain_steps = self._behind = 0
        self._due = 0
        self._price = 0.0
        self._reason = ""
        self._parked: Decision | None = None
        self._shown: Sequence[float] | None = None
        self._survival: Sequence[float] = ()
        self._best = 0
        self._evidence = self.belief.evidence
        self._lost: float | None = None

    @property
    def belief(self) -> Belief:
        """See `BelievingPolicy.belief`."""
        return self._drafter.belief

    def park(self, context: int, limit: int) -> int:
        """See `Policy.park`."""
        self._context, self._limit, self._best = context, limit, 0
        costs = self._costs = self._times.at(context)
        waited, self._stretch = self._stretch, 0
        self._due = max(self._due - waited, 0)
        if waited and self._is_repriced(costs):
            self._drafter.revalue()
        if (most := highest_rate(costs, limit)) <= _LEAST_RATE:
            doubtful = most * _DOUBT > _LEAST_RATE and not self._times.drafts_are_known
            if self._due or not (waited and doubtful):
                steps = self._trial_gap(costs) if doubtful else _RECHECK
                return self._wait(steps, "no accepted length could pay")
            self._reason = "a trial of what a round takes"
        elif self._drafter.pays(costs):
            if not waited and self._times.plain_is_due and self._pace.rate < _CLEAR:
                return self._wait(_TIMED_STEPS, "to time plain steps")
            self._reason = self._drafter.reason
        elif waited and not self._due:
            self._reason = "a trial"
        else:
            self._due = self._due or self._drafter.gap()
            look = _RECHECK if self._times.plain_is_known else _FIRST_LOOK
            return self._wait(min(self._due, look), "drafts do not pay")
        self._due = 0
        # What rounds have reached lags behind what their outcomes promise, above all at first.
        promised = best_rate(self._drafter.belief.survival(()), costs, limit)
        self._rate = max(self._pace.rate, promised)
        self.reads_confidence = self._has_confidence and self._waiting.ask()
        return 0

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        """See `Policy.admit`."""
        assert self._costs is not None
        # A deterministic request passes the same list for all slots, and needs one search.
        if seen is not self._shown or slot == 0:
            self._shown = seen
            self._best = self._search(slot, seen)
        return self._best > slot

    def copy_length(self, context: int, survival: Sequence[float], limit: int) -> int:
        """See `CopyingPolicy.copy_length`."""
        if self._plain_steps < self._stretch:
            return self._copies.length(context, survival, limit)
        return self._copies.length(context, survival, limit, self._pace.rate, self._offer)

    def learn(self, round_: Round) -> None:
        """See `Policy.learn`."""
        if round_.proposer == LOOKUP:
            self._behind += len(round_.tokens)
            self.decision = self._copies.learn(round_)
            return
        if not round_.drafted:
            self._learn_plain(round_)
            return
        costs = self._costs
        if costs is None:
            return
        self._decide(costs, round_.scheduled)
        self._price = self._block_price(costs)
        self._lost = 1e3 * round_.seconds / costs.plain - len(round_.tokens)
        # The draft after many other tokens has their features to take in, which takes time too.
        if self._behind <= _RECHECK or not self._times.known(round_.scheduled, self._context):
            ratio = self._times.learn(self._context, round_.scheduled, 1e3 * round_.seconds)
            if ratio:
                self._waiting.time(self.reads_confidence, round_.scheduled, ratio)
        self._plain_steps = self._behind = 0
        steps = (costs.draft + costs.verify[round_.scheduled]) / costs.plain
        self._pace.learn(self._drafter.learn(round_, costs), steps)
        if self._has_confidence and round_.confidence and self._waiting.wants_gain():
            worth = self._drafter.worth_of_confidences(
                round_.confidence, costs, self._rate, self._limit
            )
            self._waiting.learn(worth / (self._rate * steps))

    def close(self) -> None:
        """See `LearningPolicy.close`."""
        if self.belief.evidence > self._evidence:
            self._evidence = self.belief.evidence
            self._memory.remember(self._temperature, self.belief.posterior())

    def _is_repriced(self, costs: Costs) -> bool:
        """Whether a block costs something else than when the last one was drafted."""
        price = self._block_price(costs)
        return self._price > 0 and not 1 / _REPRICED < price / self._price < _REPRICED

    def _block_price(self, costs: Costs) -> float:
        """What a whole block takes, in plain steps."""
        return (costs.draft + costs.verify[self._limit]) / costs.plain

    def _trial_gap(self, costs: Costs) -> int:
        """Plain steps before a trial of a round's time, by what the last drafted round lost."""
        lost = self._lost
        if lost is None:
            lost = (costs.draft + costs.verify[1]) / costs.plain - 1
        return max(round(lost / _TRIAL_SHARE), _RECHECK)

    def _offer(self, costs: Costs) -> Offer:
        """What a block is expected to be before it is drafted."""
        return Offer(DRAFTER, self.belief.survival(()), costs.draft)

    def _search(self, slot: int, seen: Sequence[float]) -> int:
        """The best verify length from `slot` on."""
        costs = self._costs
        assert costs is not None
        self._survival = survival = self._drafter.survival(seen)
        least, most = self._drafter.lengths(costs, self._limit)
        best, _ = best_length(survival, costs, self._rate, max(least, slot), max(most, slot))
        return best

    def _learn_plain(self, round_: Round) -> None:
        self._plain_steps += 1
        self._behind += 1
        self._drafter.step()
        # Behind a stretch is a request's last token, which the policy was not asked about.
        self.decision = self._parked if self._plain_steps <= self._stretch else None
        if round_.steady:
            context = self._context + self._plain_steps - 1
            self._times.learn(context, None, 1e3 * round_.seconds)

    def _wait(self, steps: int, reason: str) -> int:
        self._stretch, self._plain_steps = steps, 0
        self._reason = reason
        self._survival = ()
        assert self._costs is not None
        why = Decision(f"parked: {reason}", (), (), self._costs.plain / 1e3)
        self.decision = self._parked = why
        return steps

    def _decide(self, costs: Costs, scheduled: int) -> None:
        milliseconds = tuple(costs.draft + ms for ms in costs.verify[: self._limit + 1])
        survival = tuple(self._survival[: self._limit])
        predicted = milliseconds[scheduled] / 1e3
        self.decision = Decision(self._reason, survival, milliseconds, predicted)
