"""Draws a reliability diagram: predicted survival before and after calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..calibration.metrics import bin_counts
from ..calibration.report import slot_reports
from ..calibration.sts import Calibration, check_logits, identity, survives
from . import check_path, new_figure, save

BEFORE, AFTER = "tab:orange", "tab:blue"


def plot(
    logits: npt.ArrayLike, accepted: npt.ArrayLike, calibration: Calibration, path: Path
) -> None:
    """Draw predicted survival against observed frequency, and the calibration error by slot.

    Args:
        logits: confidence logits, `[n, gamma]`.
        accepted: number of accepted tokens of each block, see `sts.survives`.
        calibration: the calibration whose effect is shown.
        path: file to write: .png, .svg or .pdf.

    Raises:
        InputError: matplotlib is not installed, the path cannot be written, or `slot_reports`
            refuses the blocks.
    """
    check_path(path)
    rows = slot_reports(logits, accepted, calibration)
    labels = survives(accepted, check_logits(logits, calibration.gamma))
    figure, axes = new_figure(11.0, 4.0, columns=3)
    axes[0].get_gridspec().set_width_ratios([3, 3, 2])
    raw = identity(calibration.gamma)
    for panel, scale, color, when in (
        (axes[0], raw, BEFORE, "before"),
        (axes[1], calibration, AFTER, "after"),
    ):
        _reliability(panel, scale.survival(logits).ravel(), labels.ravel(), color)
        panel.set_title(f"{when}, all slots")
    slots = [row.slot for row in rows]
    axes[2].plot(slots, [row.ece_before for row in rows], "o-", color=BEFORE, label="before")
    axes[2].plot(slots, [row.ece_after for row in rows], "o-", color=AFTER, label="after")
    axes[2].set(xlabel="slot", title="calibration error (ECE)", xticks=slots)
    axes[2].set_ylim(bottom=0)
    axes[2].legend(frameon=False)
    save(figure, path)


def _reliability(panel: Any, predicted: np.ndarray, label: np.ndarray, color: str) -> None:
    count, predictions, labels = bin_counts(predicted, label)
    filled = count > 0
    # A marker's area is its bin's share of all predictions.
    area = 15 + 600 * count[filled] / count.sum()
    x, y = predictions[filled] / count[filled], labels[filled] / count[filled]
    panel.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=0)
    panel.plot(x, y, color=color, linewidth=1)
    panel.scatter(x, y, s=area, color=color, alpha=0.6)
    panel.set(xlabel="predicted survival", ylabel="observed frequency", xlim=(0, 1), ylim=(0, 1))
    panel.set_aspect("equal")
