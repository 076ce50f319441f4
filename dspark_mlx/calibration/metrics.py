"""Metrics of predicted probabilities against outcomes: ECE and AUC. NumPy only."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

BINS = 15


def bin_counts(
    predicted: npt.ArrayLike, label: npt.ArrayLike, bins: int = BINS
) -> tuple[Array, Array, Array]:
    """Count, sum of predictions and sum of labels per equal-width bin of [0, 1], each `[bins]`."""
    p = np.asarray(predicted, dtype=np.float64)
    index = np.minimum((p * bins).astype(np.int64), bins - 1)
    weights = (None, p, np.asarray(label, dtype=np.float64))
    count, predictions, labels = (np.bincount(index, w, minlength=bins) for w in weights)
    return count, predictions, labels


def ece(predicted: npt.ArrayLike, label: npt.ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error: the bins' |mean prediction - frequency|, weighted by count.

    Args:
        predicted: predicted probabilities, `[n]`.
        label: outcomes, 0 or 1, or their known probabilities, `[n]`.
        bins: number of equal-width bins of [0, 1]; an edge belongs to the bin above it.
    """
    count, predictions, labels = bin_counts(predicted, label, bins)
    return float(np.abs(predictions - labels).sum() / count.sum())


def auc(predicted: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive is predicted above a negative.

    Ties count half. A label y between 0 and 1 counts as y positives and 1 - y negatives. The result
    is nan when there are no positives or no negatives.
    """
    positive = np.asarray(label, dtype=np.float64)
    values, inverse = np.unique(predicted, return_inverse=True)
    positives = np.bincount(inverse, positive, minlength=len(values))
    negatives = np.bincount(inverse, 1 - positive, minlength=len(values))
    pairs = positives.sum() * negatives.sum()
    if not pairs:
        return math.nan
    return float((positives * (np.cumsum(negatives) - negatives / 2)).sum() / pairs)
