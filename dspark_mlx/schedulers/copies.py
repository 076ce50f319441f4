"""Chooses copies: how many copied tokens a round verifies, and when a drafter is left out for them.

A copy is there before anything is drafted, so a round of it costs no draft. Its tokens depend on
committed tokens alone. All of them may be known when the length is chosen, also when sampling: no
choice depends on what the target will say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..calibration.sts import identity
from ..types import Decision, Round
from .memory import PairMemory
from .proposer import LOOKUP, Offer, best_offer
from .round_times import RoundTimes
from .speed_profile import Costs, SpeedProfile

WIDEST = 33
"""Rows of the widest verify forward: the anchor and the longest copy."""


# What a copy must be expected to gain over a drafter that drafts: the higher of two estimates is
# too high more often than not, and where there is little to copy, that is the copy's.
_LEAD = 1.3
# And over plain steps, whose time is known: where rows are so dear that a copy gains a few percent
# at best, one that is rejected early loses several steps.
_LEAD_OVER_PLAIN = 1.15


class CopyChoice:
    """Weighs one request's copies against its drafter and against plain steps.

    Args:
        times: what rounds take.
    """

    def __init__(self, times: RoundTimes) -> None:
        self._times = times
        self._context = 0
        self._costs: Costs | None = None
        self._survival: Sequence[float] = ()

    def length(
        self,
        context: int,
        survival: Sequence[float],
        limit: int,
        rate: float = 1.0,
        drafter: Callable[[Costs], Offer] | None = None,
    ) -> int:
        """How many tokens of a copy the next round verifies; 0 where something else is faster.

        Args:
            context: committed tokens before the anchor.
            survival: chances that the target accepts the copy's first k tokens, for each k.
            limit: the most tokens that the round may verify.
            rate: tokens per plain step's time that the copy has to beat.
            drafter: what the drafter is expected to offer; None where it would not draft.
        """
        if not survival:
            return 0
        costs = self._times.at(context)
        lead = _LEAD if drafter else _LEAD_OVER_PLAIN
        # Most copies do not pay even if all of it cost as little as its cheapest length.
        if (1.0 + sum(survival)) * costs.plain <= rate * lead * min(costs.verify[1:]):
            return 0
        if drafter:
            offer = drafter(costs)
            if drafted := best_offer([offer], costs, rate, limit):
                rate = offer.rate(drafted[1], costs)
        best = best_offer([Offer(LOOKUP, survival, 0.0)], costs, rate * lead, limit)
        if best is None:
            return 0
        self._context, self._costs, self._survival = context, costs, survival
        return best[1]

    def learn(self, round_: Round) -> Decision:
        """Take in a round of the copy that was chosen last; returns why it was."""
        assert self._costs is not None
        self._times.learn(self._context, round_.scheduled, 1e3 * round_.seconds, drafted=False)
        milliseconds = self._costs.verify[: len(self._survival) + 1]
        predicted = milliseconds[round_.scheduled] / 1e3
        return Decision("a copy is faster", tuple(self._survival), milliseconds, predicted)


class CopyScheduler:
    """`auto` without a drafter: a copy, or a plain step where none pays.

    Args:
        profile: speed profile of the target on this device.
        memory: file of the times that earlier runs learned; None to keep nothing.

    Warns:
        UserWarning: see `PairMemory`.
    """

    name = "auto"
    needs_confidence = False

    def __init__(self, profile: SpeedProfile, memory: Path | None = None) -> None:
        self._memory = PairMemory(profile.widened(WIDEST), identity(0), memory)

    def start(self, gamma: int, temperature: float = 0.0) -> CopyPolicy:
        """See `Scheduler.start`."""
        return CopyPolicy(self._memory, temperature)


class CopyPolicy:
    """The policy of `CopyScheduler` for one request.

    Args:
        memory: of all its requests.
        temperature: the request's sampling temperature.
    """

    reads_confidence = False

    def __init__(self, memory: PairMemory, temperature: float) -> None:
        self.decision: Decision | None = None
        self._memory = memory
        self._temperature = temperature
        self._times = memory.times(temperature)
        self._copies = CopyChoice(self._times)
        self._context = 0
        self._learned = False

    def copy_length(self, context: int, survival: Sequence[float], limit: int) -> int:
        """See `CopyingPolicy.copy_length`."""
        self._context = context
        return self._copies.length(context, survival, limit)

    def park(self, context: int, limit: int) -> int:
        """See `Policy.park`: there is nothing to draft."""
        return 1

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        """See `Policy.admit`: there is nothing to admit."""
        return False

    def learn(self, round_: Round) -> None:
        """See `Policy.learn`."""
        if round_.drafted:
            self.decision = self._copies.learn(round_)
            self._learned = True
            return
        plain = self._times.at(self._context).plain
        self.decision = Decision("no copy pays", (), (), plain / 1e3)
        if round_.steady:
            self._times.learn(self._context, None, 1e3 * round_.seconds)

    def close(self) -> None:
        """See `LearningPolicy.close`."""
        if self._learned:
            self._learned = False
            self._memory.remember(self._temperature, None)
