"""Plots of measurements. matplotlib is an optional dependency, imported when a plot is drawn."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import InputError
from ..system import files
from ..system.files import check_output, write_bytes

Styles: TypeAlias = Mapping[str, dict[str, Any]]
"""The style of each curve by its name, see `curve_styles`."""
FORMATS = ("png", "svg", "pdf")


def new_figure(width: float = 7.0, height: float = 4.5, columns: int = 1) -> tuple[Any, Any]:
    """A figure and its axes; with several columns, an array of axes.

    Args:
        width, height: size of the whole figure, in inches.
        columns: number of axes side by side.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        hint = 'Install it: pip install ".[plot]", in a clone of the project.'
        raise InputError("plot", "no matplotlib", "matplotlib", hint) from error
    # Figure is used without pyplot, so that nothing global changes and no display is needed.
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def curve_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each curve, so that several figures use the same."""
    return {name: _style(index) for index, name in enumerate(names)}


def _style(index: int) -> dict[str, Any]:
    return {"color": f"C{index % 10}", "marker": "osD^vP*X"[index % 8], "markersize": 5}


def legend_below(figure: Any, axes: Any) -> None:
    """Draw one legend under the whole figure, for the curves of `axes`."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), 3), frameon=False
    )


def check_path(path: Path) -> None:
    """Refuse a path that no plot can be written to, before the work is done.

    Raises:
        InputError: the suffix is none of FORMATS, or the path is a folder or in no folder.
    """
    if path.suffix.lstrip(".") not in FORMATS:
        raise InputError(path, f"suffix {path.suffix!r}", f"one of {', '.join(FORMATS)}")
    check_output(str(path), path)


def check_folder(folder: Path) -> None:
    """Refuse a folder that no plots can be written to, before the work is done.

    Raises:
        InputError: the path is a file, its parent does not exist, no file can be written there, or
            matplotlib is not installed.
    """
    files.check_folder(str(folder), folder)
    if not folder.parent.is_dir():
        raise InputError(folder, f"no folder {folder.parent}", "an existing folder")
    new_figure()


def save(figure: Any, path: Path) -> None:
    """Write a figure to a file, whose suffix gives the format."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=150, format=path.suffix.lstrip("."))
    write_bytes(path, drawn.getvalue())
