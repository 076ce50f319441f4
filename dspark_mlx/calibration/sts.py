"""Calibration of the confidence head by sequential temperature scaling (paper section 3.2.1).

The input is recorded confidence logits and accepted counts, as NumPy arrays. A block has slots
1..gamma; the survival a_k of slot k is the product of the confidences c_1..c_k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .metrics import ece

Array: TypeAlias = npt.NDArray[Any]

# The temperatures searched are symmetric in log T, with 1 exactly in the middle.
_HALF = np.geomspace(1.0, 5.0, 101)
GRID = np.concatenate([1 / _HALF[:0:-1], _HALF])
FLAT = 0.1
TYPICAL = 32


@dataclass(frozen=True)
class Calibration:
    """How confidence logits become confidences, and which confidences to expect beforehand.

    Attributes:
        temperatures: T_k; slot k's confidence is c_k = sigmoid(z_k / T_k).
        rounds: recorded rounds it was fitted on; 0 for the identity.
        means: mean calibrated confidence of each slot.
        persistence: share of slot k's deviation from its mean that slot k + 1 is expected to keep,
            from 0 to 1: c_{k+1} is expected at means[k+1] + persistence * (c_k - means[k]).
        typical: calibrated confidences of a few recorded blocks, ascending by expected accepted
            tokens; schedulers expect such blocks before a request's first round.
    """

    temperatures: tuple[float, ...]
    rounds: int
    means: tuple[float, ...]
    persistence: float
    typical: tuple[tuple[float, ...], ...]

    @property
    def gamma(self) -> int:
        """Slots of a block."""
        return len(self.temperatures)

    def at(self, temperature: float) -> Calibration:
        """This calibration itself, so that it can stand in for `Calibrations`."""
        return self

    def probabilities(self, logits: npt.ArrayLike) -> Array:
        """Calibrated confidences c_k.

        Args:
            logits: confidence logits, `[n, gamma]`.

        Returns:
            float64 `[n, gamma]`, each the chance that a slot survives given that its prefix did.

        Raises:
            InputError: the shape is another one, or a value is not finite.
        """
        return _sigmoid(check_logits(logits, self.gamma) / np.array(self.temperatures))

    def survival(self, logits: npt.ArrayLike) -> Array:
        """Survival a_k of every round and slot: logits `[n, gamma]` to float64 `[n, gamma]`."""
        return np.cumprod(self.probabilities(logits), axis=1)


def identity(gamma: int) -> Calibration:
    """A calibration that changes no confidence, and expects each to equal the one before."""
    half = (0.5,) * gamma
    return Calibration((1.0,) * gamma, 0, half, 1.0, (half,))


def fit(logits: npt.ArrayLike, accepted: npt.ArrayLike) -> Calibration:
    """The calibration of recorded rounds by sequential temperature scaling (paper section 3.2.1).

    From slot 1 to gamma, with the temperatures of earlier slots fixed, a grid search finds the T_k
    with the least expected calibration error of the survival a_k. Errors at most FLAT / sqrt(n)
    above the least count as equal to it (a fifth of the largest standard error of a frequency in n
    rounds). Of equal ones the T_k nearest to 1 in log T is taken; of two as near, the larger.

    Args:
        logits: confidence logits, `[n, gamma]`.
        accepted: accepted counts or chances, see `survives`.

    Raises:
        InputError: there are no rounds, the shapes do not agree, or values are out of range.
    """
    z = check_logits(logits)
    labels = survives(accepted, z)
    by_distance = GRID[np.lexsort((-GRID, np.abs(np.log(GRID)).round(9)))]
    prefix = np.ones(len(z))
    temperatures: list[float] = []
    for k in range(z.shape[1]):
        errors = [ece(prefix * _sigmoid(z[:, k] / t), labels[:, k]) for t in by_distance]
        near_least = np.array(errors) <= min(errors) + FLAT / math.sqrt(len(z))
        best = float(by_distance[np.argmax(near_least)])
        prefix = prefix * _sigmoid(z[:, k] / best)
        temperatures.append(best)
    confidence = _sigmoid(z / np.array(temperatures))
    means = tuple(confidence.mean(axis=0).tolist())
    persistence = _persistence(confidence)
    return Calibration(tuple(temperatures), len(z), means, persistence, _typical(confidence))


def _sigmoid(x: Array) -> Array:
    # tanh does not overflow, unlike exp.
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def _persistence(confidence: Array) -> float:
    """Slope of slot k + 1's deviation on slot k's, least squares over all slots, within [0, 1]."""
    deviation = confidence - confidence.mean(axis=0)
    square = float((deviation[:, :-1] ** 2).sum())
    if square == 0:
        return 0.0
    return min(max(float((deviation[:, :-1] * deviation[:, 1:]).sum()) / square, 0.0), 1.0)


def _typical(confidence: Array) -> tuple[tuple[float, ...], ...]:
    """Quantiles of the blocks by expected accepted tokens: `TYPICAL` of them, ascending."""
    order = np.argsort(np.cumprod(confidence, axis=1).sum(axis=1), kind="stable")
    middles = (np.arange(TYPICAL) + 0.5) * len(order) / TYPICAL
    blocks = confidence[order[middles.astype(np.int64)]]
    return tuple(tuple(round(c, 4) for c in block) for block in blocks.tolist())


def check_logits(logits: npt.ArrayLike, gamma: int | None = None) -> Array:
    """Confidence logits as float64 `[rounds, gamma]`.

    Raises:
        InputError: the shape is another one, or a value is not finite.
    """
    z = np.asarray(logits, dtype=np.float64)
    if z.ndim != 2 or 0 in z.shape or gamma not in (None, z.shape[1]):
        expected = f"[rounds, {'gamma' if gamma is None else gamma}]"
        raise InputError("confidence logits", f"shape {list(z.shape)}", expected)
    if not np.isfinite(z).all():
        round_, slot = np.argwhere(~np.isfinite(z))[0]
        found = f"{z[round_, slot]} in slot {slot + 1} of round {round_}"
        raise InputError("confidence logits", found, "finite numbers")
    return z


def survives(accepted: npt.ArrayLike, logits: Array) -> Array:
    """Labels of the survival: whether the first k tokens were accepted, float64 `[n, gamma]`.

    Args:
        accepted: accepted tokens of each block, integers `[n]` from 0 to gamma; or known chances
            that the first k tokens are accepted, `[n, gamma]`, which are returned as they are.
        logits: confidence logits of the same rounds, `[n, gamma]`.

    Raises:
        InputError: the shape does not agree with `logits`, or a value is out of range.
    """
    found, (n, gamma) = np.asarray(accepted), logits.shape
    if found.ndim == 2:
        chances = found.astype(np.float64)
        if chances.shape != (n, gamma):
            shape = f"shape {list(chances.shape)}"
            raise InputError("chances", shape, f"shape [{n}, {gamma}]")
        # Written so that NaN, which compares as false, is refused too.
        if not ((chances >= 0) & (chances <= 1)).all():
            range_ = f"chances from {chances.min()} to {chances.max()}"
            raise InputError("chances", range_, "numbers from 0 to 1")
        return chances
    if found.shape != (n,) or not np.issubdtype(found.dtype, np.integer):
        shape = f"{found.dtype} of shape {list(found.shape)}"
        raise InputError("accepted counts", shape, f"integers of shape [{n}]")
    if found.min() < 0 or found.max() > gamma:
        range_ = f"counts from {found.min()} to {found.max()}"
        raise InputError("accepted counts", range_, f"counts from 0 to {gamma}")
    return (found[:, None] > np.arange(gamma)).astype(np.float64)
