"""Draws the threshold sweep of one or more drafters: what ending blocks early saves and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from . import Styles, legend_below, new_figure, save

At: TypeAlias = tuple[float, float, float, float | None]
"""Threshold, accepted length, draft tokens verified per round, accepted share of these."""
_NAMED = (0.0, 0.3, 0.5, 0.7, 0.9)


def plot(
    curves: Mapping[str, Sequence[At]],
    whole: Mapping[str, tuple[float, float, float]],
    styles: Styles,
    path: Path,
) -> None:
    """Draw accepted length by verified tokens, and the accepted share of these by threshold.

    Args:
        curves: the results of the sweep, for each drafter with a confidence head.
        whole: accepted length, verified tokens and accepted share of whole blocks, for each drafter
            without a confidence head; a single mark shows them.
        styles: style of each drafter's curve.
        path: file to write: .png, .svg or .pdf.

    Raises:
        InputError: matplotlib is not installed.
    """
    figure, (left, right) = new_figure(10.5, 4.5, columns=2)
    for name, points in curves.items():
        style = styles[name]
        left.plot([at[2] for at in points], [at[1] for at in points], label=name, **style)
        _name_thresholds(left, points, style["color"])
        known = [at for at in points if at[3] is not None]
        right.plot([at[0] for at in known], [at[3] for at in known], label=name, **style)
    for name, (tau, verified, rate) in whole.items():
        style = styles[name] | {"linestyle": "", "markersize": 8}
        label = f"{name} (no confidence)"
        left.plot([verified], [tau], label=label, **style)
        right.axhline(rate, color=style["color"], linestyle=":", label=label)
    left.set(xlabel="drafted tokens verified a round", ylabel="accepted length (tokens a round)")
    left.set_title("a shorter block by confidence; numbers: thresholds", fontsize="medium")
    left.margins(0.08)
    right.set(xlabel="threshold on the confidence", ylabel="accepted share of the verified")
    right.set(xlim=(-0.02, 1.02), ylim=(0, 1.02))
    right.set_title("acceptance rate", fontsize="medium")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    legend_below(figure, left)
    save(figure, path)


def _name_thresholds(axes: Any, points: Sequence[At], color: str) -> None:
    for threshold, tau, verified, _ in points:
        if threshold in _NAMED:
            axes.annotate(
                f"{threshold:g}",
                (verified, tau),
                xytext=(-2, 5),
                textcoords="offset points",
                ha="right",
                fontsize="small",
                color=color,
            )
