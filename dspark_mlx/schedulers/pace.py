"""The rate at which a request decodes in the long run, and whether drafting pays.

By the renewal-reward theorem, a schedule's rate is its mean tokens per round divided by its mean
time per round, and the best schedule maximises tokens - rate * time in every round, where rate is
the best schedule's own. So one number, the running rate, is all that a round needs of other rounds.
"""

from __future__ import annotations

from collections.abc import Sequence

from .speed_profile import Costs

MIN_GAIN = 1.02
"""Rate over plain decoding's, or another's, from which on something is worth doing."""

_DECAY = 0.93
_PRIOR_STEPS = 3.0


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

    @property
    def rate(self) -> float:
        """The rate that the next round is compared with, at least plain decoding's 1."""
        return max(self._tokens / self._steps, 1.0)

    def learn(self, tokens: float, steps: float) -> None:
        """Update the rate with a drafted round.

        Args:
            tokens: tokens that the round was expected to commit, which is less noisy than those
                that it did.
            steps: the round's time, in plain steps.
        """
        self._tokens = _DECAY * self._tokens + tokens
        self._steps = _DECAY * self._steps + steps


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


def best_rate(survival: Sequence[float], costs: Costs, limit: int) -> float:
    """The rate of the best verify length, 0 included, if every block had these chances.

    Args:
        survival: a_1..a_gamma.
        costs: costs at the round's context length.
        limit: the most slots to verify.
    """
    tokens, best = 1.0, costs.plain / (costs.draft + costs.verify[0])
    for length in range(1, limit + 1):
        tokens += survival[length - 1]
        best = max(best, tokens * costs.plain / (costs.draft + costs.verify[length]))
    return best


def highest_rate(costs: Costs, limit: int) -> float:
    """The best rate if every draft survived, in tokens per plain step's time."""
    return best_rate((1.0,) * limit, costs, limit)
