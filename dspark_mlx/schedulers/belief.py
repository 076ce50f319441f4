"""A request's expected survival, learned from its rounds.

Plain Python on a few numbers, since it runs on the host in every round.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..calibration.sts import Calibration
from ..types import Round

_PRIOR_ROUNDS = 6.0
_MAX_ROUNDS = 24.0
# Tokens that count as both expected and accepted before the first round, and in the long run.
_PRIOR_TOKENS = 8.0
_LASTING_TOKENS = 1.0
_MAX_TRUST = 1.5


class Belief:
    """Running means of one request's confidences, and how far its drafts live up to them.

    Args:
        prior: the drafter's calibration, whose means count as the first `_PRIOR_ROUNDS` rounds.
    """

    def __init__(self, prior: Calibration) -> None:
        self._means = list(prior.means)
        self._persistence = prior.persistence
        self._counts = [_PRIOR_ROUNDS] * len(self._means)
        self._expected = self._accepted = _PRIOR_TOKENS

    def survival(self, seen: Sequence[float]) -> list[float]:
        """The chances a_1..a_gamma that the target accepts the block's first k tokens.

        Each of them is scaled by the request's accepted tokens per expected token.

        Args:
            seen: the confidences of the block's first slots. A slot d slots after the last of them
                is expected to have its own mean plus persistence^d times the last seen slot's
                deviation from its mean.
        """
        trust = min(self._accepted / self._expected, _MAX_TRUST)
        product, survival = 1.0, []
        for confidence in seen:
            product *= confidence
            survival.append(min(trust * product, 1.0))
        known = len(seen)
        deviation = seen[-1] - self._means[known - 1] if known else 0.0
        for mean in self._means[known:]:
            deviation *= self._persistence
            product *= min(max(mean + deviation, 0.0), 1.0)
            survival.append(min(trust * product, 1.0))
        return survival

    def learn(self, round_: Round) -> None:
        """Update the means with a drafted round: its confidences, or its acceptance without any."""
        if round_.confidence:
            for slot, confidence in enumerate(round_.confidence):
                self._move(slot, confidence)
            self._compare(round_)
        else:
            # After the first rejection nothing is known of a slot.
            for slot in range(min(round_.accepted + 1, round_.scheduled)):
                self._move(slot, float(slot < round_.accepted))

    def _move(self, slot: int, value: float) -> None:
        count = min(self._counts[slot] + 1, _MAX_ROUNDS)
        self._counts[slot] = count
        self._means[slot] += (value - self._means[slot]) / count

    def _compare(self, round_: Round) -> None:
        """Update expected and accepted tokens: confidences can be too high for a whole text."""
        product = 1.0
        kept = 1 - 1 / _MAX_ROUNDS
        expected = 0.0
        for confidence in round_.confidence[: round_.scheduled]:
            product *= confidence
            expected += product
        self._expected = kept * self._expected + (1 - kept) * _LASTING_TOKENS + expected
        self._accepted = kept * self._accepted + (1 - kept) * _LASTING_TOKENS + round_.accepted
