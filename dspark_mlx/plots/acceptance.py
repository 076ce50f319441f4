"""Draws the acceptance by position of one or more drafters (the paper's figure 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import Styles, legend_below, new_figure, save

Rates = Mapping[str, Sequence[float | None]]
"""For each drafter, a share for each position; None where no block reached it."""


def plot(conditional: Rates, survival: Rates, styles: Styles, path: Path) -> None:
    """Draw conditional acceptance and survival side by side, with a colour for each drafter.

    Args:
        conditional: accepted share of the blocks that accepted all positions before.
        survival: accepted share of all blocks.
        styles: style of each drafter's curve.
        path: file to write: .png, .svg or .pdf.

    Raises:
        InputError: matplotlib is not installed.
    """
    figure, (left, right) = new_figure(10.0, 4.2, columns=2)
    _panel(left, conditional, styles, "conditional acceptance, given the prefix was accepted")
    _panel(right, survival, styles, "survival: the prefix up to here is accepted")
    left.set_ylabel("share of blocks")
    legend_below(figure, left)
    save(figure, path)


def _panel(axes: Any, rates: Rates, styles: Styles, title: str) -> None:
    longest = max(len(values) for values in rates.values())
    for name, values in rates.items():
        known = [(k + 1, value) for k, value in enumerate(values) if value is not None]
        slots, shares = [slot for slot, _ in known], [share for _, share in known]
        axes.plot(slots, shares, label=name, **styles[name])
    axes.set(xlabel="position in the block", xticks=range(1, longest + 1), ylim=(0, 1.03))
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.3)
