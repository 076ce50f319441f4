"""Draws a speed profile: cost by rows verified, in milliseconds and relative to one row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..schedulers.speed_profile import SpeedProfile
from . import new_figure, save

_MARK = 0.3


def plot(profile: SpeedProfile, path: Path) -> None:
    """Draw a profile, with a colour for each context.

    The left axes show verify forwards, with a band for their quartiles. Where a wider forward is
    cheaper, a dashed line shows the cheapest forward of at least so many rows. Marks at the left
    edge show a draft and a plain step. The right axes show verify forwards relative to one row.

    Args:
        profile: the profile.
        path: file to write: .png, .svg or .pdf.

    Raises:
        InputError: matplotlib is not installed.
    """
    figure, (absolute, relative) = new_figure(width=11.0, columns=2)
    # Drafts and plain steps stand left of the widths.
    left = (-1.5, 0.0)
    widths = list(range(1, profile.widths + 1))
    for i, context in enumerate(profile.contexts):
        color, verify = f"C{i}", profile.verify[i]
        pairs = list(zip(verify, profile.verify_spread[i], strict=True))
        low = [ms * (1 - spread / 2) for ms, spread in pairs]
        high = [ms * (1 + spread / 2) for ms, spread in pairs]
        absolute.fill_between(widths, low, high, color=color, alpha=0.2, linewidth=0)
        _line(absolute, widths, verify, color, f"context {context}")
        _line(relative, widths, [ms / verify[0] for ms in verify], color, f"context {context}")
        for x, ms in zip(left, (profile.draft[i], profile.plain[i]), strict=True):
            absolute.hlines(ms, x - _MARK, x + _MARK, color=color, linewidth=2)
    absolute.set_xticks([*left, *widths], ["draft", "plain", *map(str, widths)])
    absolute.set_ylabel("milliseconds")
    relative.set_xticks(widths)
    relative.set_ylabel("cost relative to one row")
    for axes in (absolute, relative):
        axes.set_xlabel("rows verified")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    absolute.legend()
    figure.suptitle(f"{profile.name}\n{profile.device}", fontsize="medium")
    save(figure, path)


def _line(axes: Any, widths: list[int], costs: Any, color: str, label: str) -> None:
    cheapest = [min(costs[i:]) for i in range(len(costs))]
    axes.plot(widths, costs, "o-", color=color, markersize=3, label=label)
    if cheapest != list(costs):
        axes.plot(widths, cheapest, "--", color=color)
