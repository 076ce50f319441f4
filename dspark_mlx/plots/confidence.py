"""Draws the reliability diagram of the confidence of one or more drafters (as in the paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from . import Styles, legend_below, new_figure, save


def plot(
    bins: Mapping[str, Sequence[tuple[float, float, int]]],
    errors: Mapping[str, Sequence[float]],
    styles: Styles,
    path: Path,
) -> None:
    """Draw predicted against observed survival, and the expected calibration error by slot.

    The area of a marker shows the number of predictions in its bin.

    Args:
        bins: for each drafter its bins: mean predicted survival, observed share, predictions.
        errors: for each drafter the expected calibration error of each slot.
        styles: style of each drafter's curve.
        path: file to write: .png, .svg or .pdf.

    Raises:
        InputError: matplotlib is not installed.
    """
    figure, (left, right) = new_figure(9.5, 4.6, columns=2)
    left.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=0)
    for name, filled in bins.items():
        style, total = styles[name], sum(count for *_, count in filled)
        predicted, observed, counts = zip(*filled, strict=True)
        left.plot(predicted, observed, color=style["color"], linewidth=1.2)
        area = [15 + 500 * count / total for count in counts]
        shape = {"color": style["color"], "marker": style["marker"]}
        left.scatter(predicted, observed, s=area, alpha=0.55, linewidth=0, **shape)
        ece = errors[name]
        label = f"{name} (mean ECE {sum(ece) / len(ece):.3f})"
        right.plot(range(1, len(ece) + 1), ece, label=label, **style)
    edges = (-0.03, 1.03)
    left.set(xlabel="predicted survival", ylabel="observed share", xlim=edges, ylim=edges)
    left.set_title("reliability, all slots; area: share of the predictions", fontsize="medium")
    left.set_aspect("equal")
    longest = max(len(ece) for ece in errors.values())
    right.set(xlabel="position in the block", xticks=range(1, longest + 1))
    right.set_title("calibration error by slot (ECE)", fontsize="medium")
    right.set_ylim(bottom=0)
    legend_below(figure, right)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    save(figure, path)
