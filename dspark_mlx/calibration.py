"""Calibration of the confidence head by sequential temperature scaling (paper section 3.2.1).

NumPy only: knows recorded log-odds and accepted counts, nothing of models. Slots are the tokens of
a block, 1..gamma; the survival a_k of slot k is the product of the confidences c_1..c_k.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .files import read_json, write_json

Array: TypeAlias = npt.NDArray[Any]

FILE = "calibration.json"
FORMAT = "dspark_mlx.calibration"
FORMAT_VERSION = 1
BINS = 15
# Symmetric in log T, with 1 exactly in the middle.
_HALF = np.geomspace(1.0, 5.0, 101)
GRID = np.concatenate([1 / _HALF[:0:-1], _HALF])
FLAT = 0.1


@dataclass(frozen=True)
class Calibration:
    """How raw log-odds become confidences, and what confidences to expect before they are seen.

    Attributes:
        temperatures: T_k; slot k's confidence is c_k = sigmoid(z_k / T_k).
        rounds: recorded rounds it was fitted on; 0 for the identity.
        means: mean calibrated confidence of each slot.
        persistence: how much of slot k's deviation from its mean slot k + 1 keeps, from 0 to 1;
            c_{k+1} is expected at means[k+1] + persistence * (c_k - means[k]).
    """

    temperatures: tuple[float, ...]
    rounds: int
    means: tuple[float, ...]
    persistence: float

    @property
    def gamma(self) -> int:
        """Slots of a block."""
        return len(self.temperatures)

    def probabilities(self, logits: npt.ArrayLike) -> Array:
        """Calibrated confidences.

        Args:
            logits: raw log-odds, `[n, gamma]`.

        Returns:
            float64 `[n, gamma]`, each the chance that a slot survives given that its prefix did.

        Raises:
            InputError: another shape, or a value that is not finite.
        """
        return _sigmoid(_check_logits(logits, self.gamma) / np.array(self.temperatures))

    def survival(self, logits: npt.ArrayLike) -> Array:
        """a_k for every round and slot: raw log-odds `[n, gamma]` to float64 `[n, gamma]`."""
        return np.cumprod(self.probabilities(logits), axis=1)


def identity(gamma: int) -> Calibration:
    """The confidence head as it is; each slot is expected to be as sure as the one before."""
    return Calibration((1.0,) * gamma, 0, (0.5,) * gamma, 1.0)


def fit(logits: npt.ArrayLike, accepted: npt.ArrayLike) -> Calibration:
    """Sequential temperature scaling (paper section 3.2.1).

    Slot by slot from the left, the temperatures before it fixed, a grid search over T_k looks for
    the least expected calibration error of the survival a_k. Errors less than FLAT / sqrt(n) above
    the least (a fifth of the largest standard error of a frequency in n rounds) count as equal to
    it; of equal ones the T_k nearest to 1 (in log T) is taken, the hotter of two as near.

    Args:
        logits: raw log-odds, `[n, gamma]`.
        accepted: tokens of each block that the target takes, integers `[n]` from 0 to gamma.

    Raises:
        InputError: no rounds, shapes that do not fit, or values out of range.
    """
    z = _check_logits(logits)
    survives = _survives(accepted, z)
    by_distance = GRID[np.lexsort((-GRID, np.abs(np.log(GRID)).round(9)))]
    prefix = np.ones(len(z))
    temperatures: list[float] = []
    for k in range(z.shape[1]):
        errors = [ece(prefix * _sigmoid(z[:, k] / t), survives[:, k]) for t in by_distance]
        near_least = np.array(errors) <= min(errors) + FLAT / math.sqrt(len(z))
        best = float(by_distance[np.argmax(near_least)])
        prefix = prefix * _sigmoid(z[:, k] / best)
        temperatures.append(best)
    confidence = _sigmoid(z / np.array(temperatures))
    means = tuple(confidence.mean(axis=0).tolist())
    return Calibration(tuple(temperatures), len(z), means, _persistence(confidence))


def bin_counts(
    predicted: npt.ArrayLike, label: npt.ArrayLike, bins: int = BINS
) -> tuple[Array, Array, Array]:
    """Count, sum of predictions and sum of labels in equal-width bins of [0, 1], each `[bins]`."""
    p = np.asarray(predicted, dtype=np.float64)
    index = np.minimum((p * bins).astype(np.int64), bins - 1)
    weights = (None, p, np.asarray(label, dtype=np.float64))
    count, predictions, labels = (np.bincount(index, w, minlength=bins) for w in weights)
    return count, predictions, labels


def ece(predicted: npt.ArrayLike, label: npt.ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error: the bins' |mean prediction - frequency|, weighted by count.

    Args:
        predicted: probabilities, `[n]`. label: what happened, `[n]` of 0 and 1.
        bins: equal-width bins of [0, 1]; an edge belongs to the bin above it.
    """
    count, predictions, labels = bin_counts(predicted, label, bins)
    return float(np.abs(predictions - labels).sum() / count.sum())


def auc(predicted: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """The chance that a positive ranks above a negative, ties half; nan without both classes."""
    positive = np.asarray(label, dtype=bool)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return math.nan
    _, inverse, counts = np.unique(predicted, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    below = ranks[positive].sum() - n_positive * (n_positive + 1) / 2
    return float(below / (n_positive * n_negative))


@dataclass(frozen=True)
class SlotReport:
    """Survival of one slot, as the raw confidences (before) and the calibrated ones (after) see it.

    Attributes:
        slot: from 1 to gamma.
        ece_before, ece_after: expected calibration error.
        auc_before, auc_after: area under the ROC curve; nan when every label is the same.
        predicted_before, predicted_after: mean predicted survival.
        observed: share of the blocks whose first `slot` tokens the target takes.
    """

    slot: int
    ece_before: float
    ece_after: float
    auc_before: float
    auc_after: float
    predicted_before: float
    predicted_after: float
    observed: float


def report(
    logits: npt.ArrayLike, accepted: npt.ArrayLike, calibration: Calibration
) -> list[SlotReport]:
    """Before and after, slot by slot; arguments as for `fit`."""
    survives = _survives(accepted, _check_logits(logits, calibration.gamma))
    before = identity(calibration.gamma).survival(logits)
    after = calibration.survival(logits)
    return [
        SlotReport(
            slot=k + 1,
            ece_before=ece(before[:, k], survives[:, k]),
            ece_after=ece(after[:, k], survives[:, k]),
            auc_before=auc(before[:, k], survives[:, k]),
            auc_after=auc(after[:, k], survives[:, k]),
            predicted_before=float(before[:, k].mean()),
            predicted_after=float(after[:, k].mean()),
            observed=float(survives[:, k].mean()),
        )
        for k in range(calibration.gamma)
    ]


def table(rows: list[SlotReport]) -> str:
    """The report as text: a line per slot, then the means over the slots."""
    fields = [field.name for field in dataclasses.fields(SlotReport)][1:]
    values = np.array([[getattr(row, name) for name in fields] for row in rows])
    names = [str(row.slot) for row in rows]
    head = f"{'':4}{'ECE':^18}{'AUC':^18}{'mean survival':^27}"
    lines = [head.rstrip(), f"{'slot':4}" + f"{'before':>9}{'after':>9}" * 3 + f"{'observed':>9}"]
    for name, line in zip([*names, "mean"], [*values, values.mean(axis=0)], strict=True):
        lines.append(f"{name:4}" + "".join(f"{value:9.3f}" for value in line))
    return "\n".join(lines)


def write_calibration(folder: Path, calibration: Calibration) -> Path:
    """Write calibration.json beside a drafter's config.json; returns its path."""
    data = {"format": FORMAT, "format_version": FORMAT_VERSION, **dataclasses.asdict(calibration)}
    write_json(folder / FILE, data)
    return folder / FILE


def read_calibration(folder: Path, gamma: int) -> Calibration | None:
    """The calibration beside a drafter whose blocks have `gamma` slots; None when there is none.

    Raises:
        InputError: another format or version, a key missing or unknown, another number of slots,
            or a value out of range.
    """
    path = folder / FILE
    if not path.exists():
        return None
    data = read_json(path)
    found = (data.pop("format", None), data.pop("format_version", None))
    if found != (FORMAT, FORMAT_VERSION):
        raise InputError(path, f"format {found}", f"{(FORMAT, FORMAT_VERSION)}")
    fields = [field.name for field in dataclasses.fields(Calibration)]
    if sorted(data) != sorted(fields):
        raise InputError(path, f"keys {', '.join(sorted(data))}", ", ".join(sorted(fields)))
    if type(data["rounds"]) is not int or data["rounds"] < 0:
        raise InputError(path, f"rounds {data['rounds']!r}", "a whole number, 0 or more")
    temperatures = _numbers(path, "temperatures", data["temperatures"], gamma)
    if min(temperatures) <= 0:
        raise InputError(path, f"temperatures {list(temperatures)}", "numbers above 0")
    means = _numbers(path, "means", data["means"], gamma)
    (persistence,) = _numbers(path, "persistence", [data["persistence"]], 1)
    if not all(0 <= value <= 1 for value in (*means, persistence)):
        found_values = f"means {list(means)} and persistence {persistence}"
        raise InputError(path, found_values, "numbers from 0 to 1")
    return Calibration(temperatures, data["rounds"], means, persistence)


def _sigmoid(x: Array) -> Array:
    # By tanh, which does not overflow.
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def _persistence(confidence: Array) -> float:
    """Least-squares slope of slot k + 1's deviation on slot k's, pooled, kept within [0, 1]."""
    deviation = confidence - confidence.mean(axis=0)
    square = float((deviation[:, :-1] ** 2).sum())
    if square == 0:
        return 0.0
    return min(max(float((deviation[:, :-1] * deviation[:, 1:]).sum()) / square, 0.0), 1.0)


def _check_logits(logits: npt.ArrayLike, gamma: int | None = None) -> Array:
    z = np.asarray(logits, dtype=np.float64)
    if z.ndim != 2 or 0 in z.shape or gamma not in (None, z.shape[1]):
        expected = f"[rounds, {'gamma' if gamma is None else gamma}]"
        raise InputError("confidence logits", f"shape {list(z.shape)}", expected)
    if not np.isfinite(z).all():
        round_, slot = np.argwhere(~np.isfinite(z))[0]
        found = f"{z[round_, slot]} in slot {slot + 1} of round {round_}"
        raise InputError("confidence logits", found, "finite numbers")
    return z


def _survives(accepted: npt.ArrayLike, logits: Array) -> Array:
    """Whether the first k tokens were all taken, bool `[n, gamma]`."""
    counts, (n, gamma) = np.asarray(accepted), logits.shape
    if counts.shape != (n,) or not np.issubdtype(counts.dtype, np.integer):
        found = f"{counts.dtype} of shape {list(counts.shape)}"
        raise InputError("accepted counts", found, f"integers of shape [{n}]")
    if counts.min() < 0 or counts.max() > gamma:
        found = f"counts from {counts.min()} to {counts.max()}"
        raise InputError("accepted counts", found, f"counts from 0 to {gamma}")
    return counts[:, None] > np.arange(gamma)


def _numbers(path: Path, name: str, values: object, count: int) -> tuple[float, ...]:
    numbers = [v for v in values if type(v) in (int, float)] if isinstance(values, list) else []
    if values != numbers or len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise InputError(path, f"{name} {values!r}", f"{count} finite numbers")
    return tuple(map(float, numbers))
