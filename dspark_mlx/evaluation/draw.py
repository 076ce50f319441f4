"""Draws the macro-averages of an evaluation, with all drafters in each figure."""

from __future__ import annotations

from pathlib import Path

from ..plots import acceptance, confidence, curve_styles, sweep
from .records import Evaluation


def draw(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write acceptance.png and, where a drafter has confidences, reliability.png and sweep.png.

    Args:
        evaluation: an evaluation with at least one answered task.
        folder: folder for the figures, which is made if it does not exist.

    Returns:
        The paths of the figures.

    Raises:
        InputError: matplotlib is not installed.
    """
    folder.mkdir(exist_ok=True)
    scores = {name: evaluation.score(name) for name in evaluation.drafters}
    styles = curve_styles(scores)
    written = [folder / "acceptance.png"]
    acceptance.plot(
        {name: score.conditional for name, score in scores.items()},
        {name: score.survival for name, score in scores.items()},
        styles,
        written[0],
    )
    bins = {
        name: [(each.predicted, each.observed, each.count) for each in score.bins]
        for name, score in scores.items()
        if score.bins
    }
    if bins:
        written.append(folder / "reliability.png")
        errors = {name: [slot.ece_after for slot in scores[name].slots] for name in bins}
        confidence.plot(bins, errors, styles, written[-1])
    curves = {
        name: [(at.threshold, at.tau, at.verified, at.acceptance_rate) for at in score.sweep]
        for name, score in scores.items()
        if score.sweep
    }
    if curves:
        written.append(folder / "sweep.png")
        whole = {
            name: (score.tau, score.verified, score.accepted / score.verified)
            for name, score in scores.items()
            if name not in curves and score.verified
        }
        sweep.plot(curves, whole, styles, written[-1])
    return written
