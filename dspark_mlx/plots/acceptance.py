"""Acceptance by position of one or more drafters (the paper's figure 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import curve_style, new_figure, save

Rates = Mapping[str, Sequence[float | None]]
"""By drafter, a share for each position; None where there is none."""


def plot(conditional: Rates, survival: Rates, path: Path) -> None:
    """Draw both, a colour a drafter.

    Args:
        conditional: of the blocks that accepted all positions before it.
        survival: of all blocks.
        path: .png, .svg or .pdf.

    Raises:
        InputError: matplotlib is not installed.
    """
    figure, (left, right) = new_figure(10.0, 4.2, columns=2)
    _panel(left, conditional, "conditional acceptance, given the prefix was accepted")
    _panel(right, survival, "survival: the prefix up to here is accepted")
    left.set_ylabel("share of blocks")
    left.legend(frameon=False)
    save(figure, path)


def _panel(axes: Any, rates: Rates, title: str) -> None:
    longest = max(len(values) for values in rates.values())
    for i, (name, values) in enumerate(rates.items()):
        known = [(k + 1, value) for k, value in enumerate(values) if value is not None]
        axes.plot(*zip(*known, strict=True), label=name, **curve_style(i)) if known else None
    axes.set(xlabel="position in the block", xticks=range(1, longest + 1), ylim=(0, 1))
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.3)
