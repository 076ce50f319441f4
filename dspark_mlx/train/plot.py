"""A picture of a run from its log: loss, tokens a round, and acceptance by position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError
from ..plots import new_figure, save
from .log import read_log


def plot(log: Path, path: Path) -> None:
    """Draw a run: training as thin lines, evaluations as marked ones.

    Args:
        log: the run's log.csv.
        path: of the picture; its suffix gives the format.

    Raises:
        InputError: no lines in the log, or no matplotlib.
    """
    rows = read_log(log)
    if not rows:
        raise InputError(log, "no lines", "a run's log")
    figure, (loss, tokens, acceptance) = new_figure(width=14.0, columns=3)
    kinds: dict[str, dict[str, Any]] = {
        "train": {"alpha": 0.5, "linewidth": 1},
        "held-out": {"marker": "o", "markersize": 3},
    }
    for kind, style in kinds.items():
        lines = [row for row in rows if row["kind"] == kind]
        steps = [int(row["step"]) for row in lines]
        loss.plot(steps, [float(row["loss"]) for row in lines], label=kind, **style)
        for i, name in enumerate(("tau_greedy", "tau_sampled")):
            label = f"{name.removeprefix('tau_')}, {kind}"
            values = [float(row[name]) for row in lines]
            tokens.plot(steps, values, color=f"C{i}", label=label, **style)
    judged = [row for row in rows if row["kind"] == "held-out"]
    for name in [name for name in rows[0] if name.startswith("acceptance_")]:
        steps = [int(row["step"]) for row in judged]
        label = f"position {name.removeprefix('acceptance_')}"
        acceptance.plot(
            steps, [float(row[name]) for row in judged], "o-", markersize=3, label=label
        )
    # Room for the legend below the lines.
    acceptance.set_ylim(0, 1)
    for axes, title in (
        (loss, "loss"),
        (tokens, "tokens a round"),
        (acceptance, "acceptance by position, held-out"),
    ):
        axes.set_title(title)
        axes.set_xlabel("steps")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", ncols=2, loc="lower right" if axes is tokens else "best")
    save(figure, path)
