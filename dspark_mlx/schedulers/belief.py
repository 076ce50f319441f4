"""How far a request's drafts are believed: learned from what the target accepted.

Accepted tokens are the evidence; a confidence is a feature. The chance that a draft survives, given
that those before it did, is a Bayesian logistic regression on the log-odds of its confidence and on
its slot. A useless head gets a weight near 0, so that slots alone decide; an inverted one a weight
below 0; a head that is too sure gets another bias. Plain Python on a few numbers, since it runs on
the host in every round.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Protocol, runtime_checkable

from ..calibration.sts import Calibration
from ..errors import InputError
from ..numbers import check_numbers
from ..types import Round

Weights = tuple[float, float, float]
"""Of a constant, a confidence's log-odds, and the logarithm of a slot's number."""

# Before any evidence a draft survives at about even odds, and confidences are believed by half.
_UNKNOWN: Weights = (0.3, 0.5, 0.0)
_UNKNOWN_VARIANCE: Weights = (2.5, 0.5, 0.2)
# What a request may differ by from those that a calibration was fitted on, whose temperatures
# cannot say that a head is useless; and from the request before.
_FITTED_VARIANCE: Weights = (1.5, 0.3, 0.1)
_NEW_TEXT: Weights = (0.25, 0.02, 0.02)
# Rounds after which a calibration weighs as much as knowing nothing does, and what it counts for.
_FITTED_ROUNDS = 30.0
_FITTED_EVIDENCE = 1.0
# Of earlier requests: more of it would let a request stake too much on drafts like theirs.
_MAX_EVIDENCE = 40.0
# Evidence is worth half as much after 69 rounds.
_KEPT = 0.99
_MAX_LOG_ODDS = 6.0
_MEAN_ROUNDS = 6.0
_MAX_MEAN_ROUNDS = 24.0
_RECENT = 12
_NEWTON_STEPS = 3
_MIN_CURVATURE = 0.01


@dataclass
class Prior:
    """What is known of a drafter before a request's first round.

    Attributes:
        weights: see `Weights`.
        covariance: of the weights, `[3][3]`.
        means: mean confidence of each slot, `[gamma]`.
        persistence: see `Calibration.persistence`.
        blocks: confidences of a few blocks, `[blocks][gamma]`.
        evidence: judged drafts that this was learned from.
    """

    weights: list[float]
    covariance: list[list[float]]
    means: list[float]
    persistence: float
    blocks: list[tuple[float, ...]] = field(default_factory=list)
    evidence: float = 0.0

    @classmethod
    def of(cls, calibration: Calibration) -> Prior:
        """The prior of a calibration, which weighs as much as the rounds that it was fitted on."""
        fitted = calibration.rounds > 0
        share = _FITTED_ROUNDS / (_FITTED_ROUNDS + calibration.rounds)
        variance = [
            share * unknown + (1 - share) * known
            for unknown, known in zip(_UNKNOWN_VARIANCE, _FITTED_VARIANCE, strict=True)
        ]
        return cls(
            [0.0, 1.0, 0.0] if fitted else list(_UNKNOWN),
            [[variance[i] * (i == j) for j in range(3)] for i in range(3)],
            list(calibration.means),
            calibration.persistence,
            list(calibration.typical) if fitted else [],
            (1 - share) * _FITTED_EVIDENCE,
        )

    def for_new_text(self) -> Prior:
        """The prior of the next request: less certain, since its text is another."""
        covariance = [list(row) for row in self.covariance]
        for i in range(3):
            covariance[i][i] += _NEW_TEXT[i]
        _limit(covariance, _UNKNOWN_VARIANCE)
        return replace(self, covariance=covariance, evidence=min(self.evidence, _MAX_EVIDENCE))

    def to_dict(self) -> dict[str, Any]:
        """The prior as a JSON object, see `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], gamma: int, where: str) -> Prior:
        """The prior in a JSON object from `to_dict`; `where` names it in errors.

        Raises:
            InputError: a key is missing or unknown, or a value has another form or range.
        """
        names = {f.name for f in fields(cls)}
        if set(data) != names:
            raise InputError(where, f"keys {', '.join(sorted(data))}", ", ".join(sorted(names)))
        for name in ("covariance", "blocks"):
            if not isinstance(data[name], list):
                raise InputError(f"{where}.{name}", repr(data[name])[:80], "a list of lists")
        rows = [check_numbers(f"{where}.covariance", r, 3) for r in data["covariance"]]
        if len(rows) != 3 or not all(
            rows[i][i] > 0 and abs(rows[i][j] - rows[j][i]) < 1e-6
            for i in range(3)
            for j in range(3)
        ):
            raise InputError(f"{where}.covariance", f"{rows}", "a covariance of 3 numbers")
        (persistence,) = check_numbers(f"{where}.persistence", [data["persistence"]], 1, 0, 1)
        (evidence,) = check_numbers(f"{where}.evidence", [data["evidence"]], 1, 0)
        return cls(
            check_numbers(f"{where}.weights", data["weights"], 3),
            rows,
            check_numbers(f"{where}.means", data["means"], gamma, 0, 1),
            persistence,
            [tuple(check_numbers(f"{where}.blocks", b, gamma, 0, 1)) for b in data["blocks"]],
            evidence,
        )


class Belief:
    """One request's chances that drafts survive.

    Args:
        prior: what is known before the first round.
    """

    def __init__(self, prior: Prior) -> None:
        self._weights = list(prior.weights)
        self._covariance = [list(row) for row in prior.covariance]
        self._widest = [
            max(unknown, prior.covariance[i][i]) for i, unknown in enumerate(_UNKNOWN_VARIANCE)
        ]
        self._means = list(prior.means)
        self._counts = [_MEAN_ROUNDS] * len(self._means)
        self._persistence = prior.persistence
        self._slots = [math.log(1 + slot) for slot in range(len(self._means))]
        self.blocks = deque(prior.blocks, maxlen=_RECENT)
        self.evidence = prior.evidence

    def survival(
        self, seen: Sequence[float], optimism: float = 0.0, start: int = 0, before: float = 1.0
    ) -> list[float]:
        """The chances that the target accepts the block's first k tokens, for k from `start` + 1.

        Args:
            seen: the confidences of the block's first slots. A slot d slots after the last of them
                is expected to have its own mean plus persistence^d times the last seen slot's
                deviation from its mean.
            optimism: standard deviations by which what is unknown is expected to turn out well.
            start: slots to leave out.
            before: the chance that the target accepts the slots that are left out.
        """
        known, means = len(seen), self._means
        deviation = seen[-1] - means[known - 1] if known else 0.0
        if start > known:
            deviation *= self._persistence ** (start - known)
        product, survival = before, []
        for slot in range(start, len(means)):
            if slot < known:
                confidence = seen[slot]
            else:
                deviation *= self._persistence
                confidence = means[slot] + deviation
            product *= self._chance(confidence, slot, optimism)
            survival.append(product)
        return survival

    def learn(self, round_: Round) -> None:
        """Update with a drafted round: after its first rejection nothing is known of a slot."""
        confidence = round_.confidence or (0.5,) * len(self._means)
        for slot in range(min(round_.accepted + 1, round_.scheduled)):
            self._observe(confidence[slot], slot, slot < round_.accepted)
            self.evidence += 1
        for slot, value in enumerate(confidence[: len(self._means)]):
            count = self._counts[slot] = min(self._counts[slot] + 1, _MAX_MEAN_ROUNDS)
            self._means[slot] += (value - self._means[slot]) / count
        self.blocks.append(tuple(confidence))
        self.forget(_KEPT)

    def forget(self, kept: float) -> None:
        """Let evidence age: keep so much of what it is worth, but never less than at first."""
        covariance = self._covariance
        for row in covariance:
            row[0], row[1], row[2] = row[0] / kept, row[1] / kept, row[2] / kept
        _limit(covariance, self._widest)

    def posterior(self) -> Prior:
        """What was learned, as the prior of other requests."""
        return Prior(
            list(self._weights),
            [list(row) for row in self._covariance],
            list(self._means),
            self._persistence,
            list(self.blocks),
            self.evidence,
        )

    def _chance(self, confidence: float, slot: int, optimism: float) -> float:
        z, s = log_odds(confidence), self._slots[slot]
        a, b, c = self._weights
        p, q, r = self._covariance
        mean = a + b * z + c * s
        variance = p[0] + q[1] * z * z + r[2] * s * s + 2 * (p[1] * z + p[2] * s + q[2] * z * s)
        if optimism:
            return sigmoid(mean + optimism * math.sqrt(variance))
        # The mean of a sigmoid of a normal variable, to three digits.
        return sigmoid(mean / math.sqrt(1 + 0.3927 * variance))

    def _observe(self, confidence: float, slot: int, survived: bool) -> None:
        """Laplace's approximation for a logistic observation: its mode, and the curvature there."""
        x = (1.0, log_odds(confidence), self._slots[slot])
        w, covariance = self._weights, self._covariance
        along = [row[0] + row[1] * x[1] + row[2] * x[2] for row in covariance]
        variance = along[0] + along[1] * x[1] + along[2] * x[2]
        mean = mode = w[0] + w[1] * x[1] + w[2] * x[2]
        for _ in range(_NEWTON_STEPS):
            chance = sigmoid(mode)
            curvature = max(chance * (1 - chance), _MIN_CURVATURE)
            off = mean + variance * (survived - chance) - mode
            mode += off / (1 + variance * curvature)
        chance = sigmoid(mode)
        curvature = max(chance * (1 - chance), _MIN_CURVATURE)
        shrink = curvature / (1 + curvature * variance)
        for i in range(3):
            w[i] += along[i] * (mode - mean) / variance
            for j in range(3):
                covariance[i][j] -= along[i] * along[j] * shrink


@runtime_checkable
class BelievingPolicy(Protocol):
    """A policy that schedules by a belief, which batches of requests schedule by and teach too."""

    @property
    def belief(self) -> Belief:
        """How far the request's drafts are believed."""
        ...


def _limit(covariance: list[list[float]], variances: Sequence[float]) -> None:
    """Scale a covariance in place, so that no variance is above its limit."""
    for i, limit in enumerate(variances):
        if covariance[i][i] > limit:
            factor = math.sqrt(limit / covariance[i][i])
            for j in range(3):
                covariance[i][j] *= factor
                covariance[j][i] *= factor


def sigmoid(x: float) -> float:
    """The logistic function, which tanh computes without overflow."""
    return 0.5 + 0.5 * math.tanh(0.5 * x)


def log_odds(chance: float) -> float:
    """The log-odds of a chance, at most `_MAX_LOG_ODDS` either way."""
    if chance <= 0.0025:
        return -_MAX_LOG_ODDS
    if chance >= 0.9975:
        return _MAX_LOG_ODDS
    return math.log(chance / (1 - chance))
