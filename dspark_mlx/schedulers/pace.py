"""The long-run rate a request decodes at, and whether drafting pays.

By the renewal-reward theorem the rate of a schedule is its mean tokens per round over its mean time
per round, and a round is scheduled best when it maximises tokens - rate * time at that very rate.
So one number, the running rate, is all that a round needs to know of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

from .speed_profile import Costs

# Chosen by replaying rounds of training prompts on all shipped profiles.
_DECAY = 0.93
_PRIOR_STEPS = 3.0
_FIRST_GAP = 24
_LAST_GAP = 192
_LOSS = 2.0
_LOSS_PER_STEP = 0.01
_SUBSTITUTIONS = 5


class Pace:
    """Tokens per plain step's time, running over the last rounds that drafted.

    Time is counted in plain steps, which makes rounds at different contexts comparable and plain
    decoding's own rate 1.

    Args:
        prior: the rate expected before anything is known.
    """

    def __init__(self, prior: float) -> None:
        self._tokens = prior * _PRIOR_STEPS
        self._steps = _PRIOR_STEPS
        self._gap = _FIRST_GAP
        self._balance = _LOSS
        self._waited = False

    @property
    def rate(self) -> float:
        """The rate that the next round competes with: never below plain decoding's."""
        return max(self._tokens / self._steps, 1.0)

    def park(self) -> int:
        """Plain steps to make before the next draft: none while drafting pays.

        While it does not, a single round is drafted now and then to see whether it does again, at
        distances that double. What all drafts of a request may lose in sum is limited as well.
        Asked again after the steps it gave, it lets that round be drafted.
        """
        pays = self._tokens >= self._steps
        if pays and self._balance >= 0:
            self._gap = _FIRST_GAP
            return 0
        self._waited = not self._waited
        if not self._waited:
            return 0
        gap, self._gap = self._gap, min(2 * self._gap, _LAST_GAP)
        return gap

    def learn(self, expected: float, committed: int, steps: float) -> None:
        """Take in a drafted round.

        Args:
            expected: tokens it was expected to commit, a better measure than the few it did.
            committed: tokens it did commit.
            steps: its time, in plain steps.
        """
        self._tokens = _DECAY * self._tokens + expected
        self._steps = _DECAY * self._steps + steps
        # Half of each: accepted tokens are few and noisy, and expectations alone could be wrong.
        self._balance += (expected + committed) / 2 - (1 - _LOSS_PER_STEP) * steps

    def step(self) -> None:
        """Take in a plain step."""
        self._balance += _LOSS_PER_STEP


def best_length(
    survival: Sequence[float], costs: Costs, rate: float, start: int, limit: int
) -> tuple[int, float]:
    """The verify length in start..limit that is worth most, and its worth.

    The worth of a length is its expected tokens less what the rate would have made of its time;
    the draft's time is spent in any case. A global search, since verify costs are jagged.

    Args:
        survival: a_1..a_gamma.
        costs: at this context.
        rate: tokens per plain step's time.
        start: slots that are admitted already.
        limit: slots at most.
    """
    price = rate / costs.plain
    tokens = 1.0 + sum(survival[:start])
    best, most = start, tokens - price * costs.verify[start]
    for length in range(start + 1, limit + 1):
        tokens += survival[length - 1]
        worth = tokens - price * costs.verify[length]
        if worth > most:
            best, most = length, worth
    return best, most


def highest_rate(costs: Costs, limit: int) -> float:
    """The rate if every draft survived, tokens per plain step's time: no text can do better."""
    return max(
        (1 + length) * costs.plain / (costs.draft + costs.verify[length])
        for length in range(limit + 1)
    )


def long_run_rate(blocks: Sequence[Sequence[float]], costs: Costs) -> float:
    """The best rate over blocks of known confidences, tokens per plain step's time.

    Found by repeated substitution (Dinkelbach): schedule every block for a rate, see what rate that
    makes, and again.
    """
    rate = 1.0
    for _ in range(_SUBSTITUTIONS):
        tokens = steps = 0.0
        for confidence in blocks:
            survival = list(accumulate(confidence, mul))
            length, _ = best_length(survival, costs, rate, 0, len(survival))
            tokens += 1.0 + sum(survival[:length])
            steps += (costs.draft + costs.verify[length]) / costs.plain
        rate = tokens / steps
    return rate
