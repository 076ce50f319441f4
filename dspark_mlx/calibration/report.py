"""ECE and AUC of each slot's survival, before and after calibration."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .metrics import auc, ece
from .sts import Calibration, check_logits, identity, survives


@dataclass(frozen=True)
class SlotReport:
    """How well one slot's survival is predicted, before and after calibration.

    Attributes:
        slot: number of the slot, from 1 to gamma.
        ece_before, ece_after: expected calibration error of the survival.
        auc_before, auc_after: area under the ROC curve; nan when every label is the same.
        predicted_before, predicted_after: mean predicted survival.
        observed: share of blocks whose first `slot` tokens the target accepts, or the mean of its
            known chances.
    """

    slot: int
    ece_before: float
    ece_after: float
    auc_before: float
    auc_after: float
    predicted_before: float
    predicted_after: float
    observed: float


def slot_reports(
    logits: npt.ArrayLike, accepted: npt.ArrayLike, calibration: Calibration
) -> list[SlotReport]:
    """The reports of all slots; `logits` and `accepted` are those of `sts.fit`."""
    labels = survives(accepted, check_logits(logits, calibration.gamma))
    before = identity(calibration.gamma).survival(logits)
    after = calibration.survival(logits)
    return [
        SlotReport(
            slot=k + 1,
            ece_before=ece(before[:, k], labels[:, k]),
            ece_after=ece(after[:, k], labels[:, k]),
            auc_before=auc(before[:, k], labels[:, k]),
            auc_after=auc(after[:, k], labels[:, k]),
            predicted_before=float(before[:, k].mean()),
            predicted_after=float(after[:, k].mean()),
            observed=float(labels[:, k].mean()),
        )
        for k in range(calibration.gamma)
    ]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def report_table(rows: list[SlotReport]) -> str:
    """The reports as text: a line per slot, then the means; "-" where there is no number."""
    fields = [field.name for field in dataclasses.fields(SlotReport)][1:]
    values = np.array([[getattr(row, name) for name in fields] for row in rows])
    names = [str(row.slot) for row in rows]
    head = f"{'':4}{'ECE':^18}{'AUC':^18}{'mean survival':^27}"
    lines = [head.rstrip(), f"{'slot':4}" + f"{'before':>9}{'after':>9}" * 3 + f"{'observed':>9}"]
    for name, line in zip([*names, "mean"], [*values, values.mean(axis=0)], strict=True):
        lines.append(f"{name:4}" + "".join(f"{_number(value):>9}" for value in line))
    return "\n".join(lines)
