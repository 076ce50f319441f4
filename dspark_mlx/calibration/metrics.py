"""How well predicted probabilities agree with what happened: ECE and AUC. NumPy only."""

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
    """Count, sum of predictions and sum of labels in equal-width bins of [0, 1], each `[bins]`."""
    p = np.asarray(predicted, dtype=np.float64)
    index = np.minimum((p * bins).astype(np.int64), bins - 1)
    weights = (None, p, np.asarray(label, dtype=np.float64))
    count, predictions, labels = (np.bincount(index, w, minlength=bins) for w in weights)
    return count, predictions, labels


def ece(predicted: npt.ArrayLike, label: npt.ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error: the bins' |mean prediction - frequency|, weighted by count.

    Args:
        predicted: probabilities, `[n]`. label: what happened, `[n]` of 0 and 1, or its chance.
        bins: equal-width bins of [0, 1]; an edge belongs to the bin above it.
    """
    count, predictions, labels = bin_counts(predicted, label, bins)
    return float(np.abs(predictions - labels).sum() / count.sum())


def auc(predicted: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """The chance that a positive ranks above a negative, ties half; nan without both classes.

    A label between 0 and 1 counts as so much of a positive and the rest of a negative.
    """
    positive = np.asarray(label, dtype=np.float64)
    values, inverse = np.unique(predicted, return_inverse=True)
    ups = np.bincount(inverse, positive, minlength=len(values))
    downs = np.bincount(inverse, 1 - positive, minlength=len(values))
    pairs = ups.sum() * downs.sum()
    if not pairs:
        return math.nan
    return float((ups * (np.cumsum(downs) - downs / 2)).sum() / pairs)
