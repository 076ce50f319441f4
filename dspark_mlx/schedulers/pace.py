"""The rate at which a request decodes in the long run, and whether drafting pays.

By the renewal-reward theorem, a schedule's rate is its mean tokens per round divided by its mean
time per round, and the best schedule maximises tokens - rate * time in every round, where rate is
the best schedule's own. So one number, the running rate, is all that a round needs of other rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

from .speed_profile import Costs

# Constants of this module were chosen by replaying training prompts on all shipped profiles.
_DECAY = 0.93
_PRIOR_STEPS = 3.0
_FIRST_GAP = 24
_LAST_GAP = 192
_LOSS = 2.0
_LOSS_PER_STEP = 0.01
_SUBSTITUTIONS = 5


class Pace:
    """The running rate of a request's newest drafted rounds, in tokens per plain step's time.

    Time is counted in plain steps, so that rounds at different contexts are comparable. The rate of
    plain decoding is 1.

    Args:
        prior: the rate that is expected before the first round.
    """

    def __init__(self, prior: float) -> None:
        self._tokens = prior * _PRIOR_STEPS
        self._steps = _PRIOR_STEPS
        self._gap = _FIRST_GAP
        self._balance = _LOSS
        self._waited = False

    @property
    def rate(self) -> float:
        """The rate that the next round is compared with, at least plain decoding's 1."""
        return max(self._tokens / self._steps, 1.0)

    def park(self) -> int:
        """The number of plain steps before the next draft; 0 while drafting pays.

        While drafting does not pay, one round is drafted after each gap of plain steps to see
        whether it pays again, and the gaps double. The total time that a request's drafts may lose
        is limited too. Calls alternate: one returns the gap, and the next, after those steps,
        returns 0 for the trial round.
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
        """Update the rate with a drafted round.

        Args:
            expected: tokens that the round was expected to commit, which is less noisy than
                `committed`.
            committed: tokens that the round committed.
            steps: the round's time, in plain steps.
        """
        self._tokens = _DECAY * self._tokens + expected
        self._steps = _DECAY * self._steps + steps
        # The mean of both: accepted counts are noisy, and expectations can be wrong.
        self._balance += (expected + committed) / 2 - (1 - _LOSS_PER_STEP) * steps

    def step(self) -> None:
        """Count a plain step; it adds a little to the time that drafts may lose."""
        self._balance += _LOSS_PER_STEP


def best_length(
    survival: Sequence[float], costs: Costs, rate: float, start: int, limit: int
) -> tuple[int, float]:
    """The verify length in start..limit that is worth most, and its worth in tokens.

    The worth of a length is its expected tokens minus the rate times its verify time; the draft's
    time is the same for all lengths. All lengths are compared, since verify costs have jumps.

    Args:
        survival: a_1..a_gamma.
        costs: costs at the round's context length.
        rate: tokens per plain step's time.
        start: slots that are admitted already.
        limit: the most slots to verify.
    """
    tokens_per_ms = rate / costs.plain
    tokens = 1.0 + sum(survival[:start])
    best, best_worth = start, tokens - tokens_per_ms * costs.verify[start]
    for length in range(start + 1, limit + 1):
        tokens += survival[length - 1]
        worth = tokens - tokens_per_ms * costs.verify[length]
        if worth > best_worth:
            best, best_worth = length, worth
    return best, best_worth


def highest_rate(costs: Costs, limit: int) -> float:
    """The best rate if every draft survived, in tokens per plain step's time."""
    return max(
        (1 + length) * costs.plain / (costs.draft + costs.verify[length])
        for length in range(limit + 1)
    )


def long_run_rate(blocks: Sequence[Sequence[float]], costs: Costs) -> float:
    """The best rate over blocks of known confidences, in tokens per plain step's time.

    Dinkelbach's method: schedule every block at a rate, compute the rate of that schedule, repeat.

    Args:
        blocks: confidences of each block, `[blocks][gamma]`.
        costs: costs at the request's context length.
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
