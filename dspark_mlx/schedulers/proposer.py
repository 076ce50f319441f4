"""One proposer of a request: how far its drafts are believed, and whether they pay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..types import Round
from .belief import Belief, Prior
from .pace import MIN_GAIN, best_length
from .speed_profile import Costs

DRAFTER, LOOKUP = "drafter", "lookup"
"""Names of proposers."""

# Constants of this module were chosen on simulated requests, see replay/simulated.py.
LEAST_EVIDENCE = 2
"""Judged drafts before a proposer may be parked, where any outcome could still pay."""

# Standard deviations: while no draft of the request was rejected, and afterwards.
_FIRST_OPTIMISM = 1.3
_OPTIMISM = 0.5
# Weight of the newest block in the mean of what blocks are worth. At first all count the same; of
# earlier requests' judged drafts so many count as one block.
_NEWEST = 0.15
_DRAFTS_PER_BLOCK = 2.0
_MAX_WORTH = 0.8
# Plain steps that drafts may lose before they are given up, and what a plain step and a plain step
# that drafts have gained add to them.
_BUDGET = 4.5
_BUDGET_PER_STEP = 0.01
_BUDGET_PER_GAIN = 0.1
# Judged drafts of earlier requests that leave nothing to be tried at a loss.
_AMPLE_EVIDENCE = 6
_MAX_DEBT = 0.5
_GAPS = (2, 128)
# Plain steps that a round may lose at most, beyond what the request's drafts have gained.
_STAKE = 3.0
_STAKE_PER_EVIDENCE = 0.1
# Part of a round that fewer slots must save.
_LEAST_SAVED = 0.1
# Tokens per plain step's time that a trial's length must be able to reach, or it is a sure loss.
_LEAST_HOPE = 1.6


@dataclass(frozen=True)
class Offer:
    """What a proposer offers to verify.

    Attributes:
        proposer: its name.
        survival: chances that the target accepts its first k tokens.
        draft: milliseconds until the tokens are there; 0 for tokens that are.
    """

    proposer: str
    survival: Sequence[float]
    draft: float

    def rate(self, length: int, costs: Costs) -> float:
        """Expected tokens per plain step's time of a round that verifies so many of its tokens."""
        tokens = 1.0 + sum(self.survival[:length])
        return tokens * costs.plain / (self.draft + costs.verify[length])


def best_offer(
    offers: Sequence[Offer], costs: Costs, rate: float, limit: int
) -> tuple[Offer, int] | None:
    """The offer and verify length of the highest expected rate; None where all are slower.

    Args:
        offers: of all proposers.
        costs: costs at the round's context length; each offer brings its own draft's cost.
        rate: tokens per plain step's time that an offer has to exceed; a plain step's own is 1.
        limit: the most slots to verify.
    """
    best, most = None, rate / costs.plain
    for offer in offers:
        tokens, slots = 1.0, offer.survival[:limit]
        # Ends where either has no more: slots, or widths.
        for length, (chance, verify) in enumerate(zip(slots, costs.verify[1:], strict=False), 1):
            tokens, milliseconds = tokens + chance, offer.draft + verify
            if tokens > most * milliseconds:
                best, most = (offer, length), tokens / milliseconds
    return best


class ProposerState:
    """What a request has learned of one proposer.

    Args:
        prior: what is known of it before the request.
    """

    def __init__(self, prior: Prior) -> None:
        self.belief = Belief(prior)
        self._worth: float | None = None
        self._blocks = prior.evidence // _DRAFTS_PER_BLOCK
        self._balance = _BUDGET * max(1 - prior.evidence / _AMPLE_EVIDENCE, 0.0)
        self._loss = 0.0
        self._taught = True
        self._optimism = _FIRST_OPTIMISM
        self._gained = _STAKE_PER_EVIDENCE * prior.evidence

    @property
    def proven(self) -> bool:
        """Whether enough of its drafts were judged to part with it."""
        return self.belief.evidence >= LEAST_EVIDENCE

    @property
    def reason(self) -> str:
        """Why its next block is drafted, after `pays` said so."""
        if not self.proven:
            return "too little is known yet"
        return "drafts pay" if (self._worth or 0.0) >= 0 else "drafts have not lost much yet"

    def pays(self, costs: Costs) -> bool:
        """Whether its next block is expected to gain, or may still be tried at a loss."""
        if self._worth is None:
            blocks = self.belief.blocks
            worths = [self._block_worth(block, costs) for block in blocks]
            self._worth = sum(worths) / len(worths) if worths else 0.0
            self._loss = -self._worth
        return self._worth >= 0 or not self.proven or self._balance > self._loss

    def revalue(self) -> None:
        """Forget what its blocks were worth, and what they have lost: their price was wrong."""
        self._worth = None
        self._balance = max(self._balance, 0.0)

    def gap(self) -> int:
        """Plain steps before the next trial round, until which its loss can be afforded.

        Where little is lost, or drafts gained before, trials come soon.
        """
        missing = (self._loss - self._balance) / _BUDGET_PER_STEP
        return min(max(round(missing), _GAPS[0]), _GAPS[1])

    def step(self) -> None:
        """Count a plain step, which adds a little to what drafts may lose."""
        self._add(_BUDGET_PER_STEP)

    def survival(self, seen: Sequence[float]) -> list[float]:
        """The chances a_1..a_gamma by which a block is scheduled, a little optimistic."""
        return self.belief.survival(seen, self._optimism)

    def lengths(self, costs: Costs, limit: int) -> tuple[int, int]:
        """The fewest and the most slots, up to `limit`, that its next block may verify.

        Nothing is learned of a block of which nothing is verified, so that no two in a row are. A
        block that is tried at a loss is verified as far as it takes to gain if the target accepts
        it: less would be a sure loss.
        """
        most = self._affordable(costs, limit)
        if self.proven and (self._worth or 0.0) >= 0 and self._taught:
            return 0, most
        gaining = (n for n in range(1, most + 1) if _highest(costs, n) >= MIN_GAIN)
        return next(gaining, 1), most

    def learn(self, round_: Round, costs: Costs) -> float:
        """Update with a round of its drafts; returns the tokens that were to be expected of it."""
        self.belief.learn(round_)
        if round_.accepted < round_.scheduled:
            self._optimism = _OPTIMISM
        survival = self.belief.survival(round_.confidence)
        expected = 1.0 + sum(survival[: round_.scheduled])
        steps = (costs.draft + costs.verify[round_.scheduled]) / costs.plain
        worth = self._block_worth(round_.confidence, costs)
        self._blocks += 1
        self._taught = round_.scheduled > 0
        newest = max(_NEWEST, 1 / self._blocks)
        worth = (1 - newest) * (self._worth or 0.0) + newest * worth
        self._worth = min(max(worth, -_MAX_WORTH), _MAX_WORTH)
        gain = len(round_.tokens) - steps
        self._gained = max(self._gained + gain, 0.0)
        self._add(gain)
        self._loss = steps - expected
        return expected

    def worth_of_confidences(
        self, confidence: Sequence[float], costs: Costs, rate: float, limit: int
    ) -> float:
        """Tokens that a block's confidences were worth for the choice of its verify length.

        Args:
            confidence: of all its slots.
            costs: costs at the round's context length.
            rate: see `best_length`.
            limit: the most slots that it might verify.
        """
        blind, _ = best_length(self.belief.survival(()), costs, rate, 0, limit)
        survival = self.belief.survival(confidence)
        _, known = best_length(survival, costs, rate, 0, limit)
        _, unknown = best_length(survival, costs, rate, blind, blind)
        return known - unknown

    def _add(self, steps: float) -> None:
        """Count plain steps that were gained, or that may be lost; below 0, that were lost."""
        most = _BUDGET + _BUDGET_PER_GAIN * self._gained
        self._balance = max(min(self._balance + steps, most), -_MAX_DEBT)

    def _affordable(self, costs: Costs, limit: int) -> int:
        """The most slots, up to `limit`, whose verification the request can afford to lose.

        No fewer than could pay if the target accepted all of them: where a second row is dear, a
        few slots lose with certainty. And all where leaving some out saves next to nothing.
        """
        most, length = (1 + _STAKE + self._gained) * costs.plain - costs.draft, limit
        while length > 1 and costs.verify[length] > most:
            if _highest(costs, length - 1) < _LEAST_HOPE:
                break
            length -= 1
        saved = costs.verify[limit] - costs.verify[length]
        return length if saved > _LEAST_SAVED * (costs.draft + costs.verify[limit]) else limit

    def _block_worth(self, confidence: Sequence[float], costs: Costs) -> float:
        """Tokens that drafting a block gains over plain steps of the same time."""
        survival = self.survival(confidence)
        slots = min(len(survival), len(costs.verify) - 1)
        _, worth = best_length(survival, costs, 1.0, 0, slots)
        return worth - costs.draft / costs.plain


def _highest(costs: Costs, length: int) -> float:
    """The rate of a verify length, in tokens per plain step's time, if the target accepts all."""
    return (1 + length) * costs.plain / (costs.draft + costs.verify[length])
