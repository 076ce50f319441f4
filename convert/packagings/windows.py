"""Sliding windows and causality of a drafter's layers, as published configs spell them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .source import FULL, SLIDING, Source


def read_windows(
    source: Source,
    values: Mapping[str, Any],
    layers: int,
    *,
    causal: bool | None = None,
    less: int = 0,
    by_row: bool = False,
) -> dict[str, Any]:
    """Windows and causality by layer: sliding layers have both, full ones neither.

    Args:
        source: the checkpoint.
        values: with `layer_types` and `sliding_window`.
        layers: how many there are.
        causal: of all layers, where the config says so itself; None for the sliding ones.
        less: rows by which the window is wider than the context it leaves.
        by_row: see `DSparkConfig.window_by_row`.

    Raises:
        InputError: an unknown kind of layer, another number of them, or no window.
    """
    kinds = source.layer_types(layers, values, (FULL, SLIDING))
    sliding = [kind == SLIDING for kind in kinds]
    window = source.whole("sliding_window", values) - less if any(sliding) else 0
    found = {
        "windows": tuple(window if one else 0 for one in sliding),
        "causal": tuple(one if causal is None else causal for one in sliding),
        "window_by_row": by_row,
    }
    # Nothing said of any layer is the canonical way to say nothing.
    return {name: value for name, value in found.items() if value is True or _any_of(value)}


def _any_of(value: object) -> bool:
    """Whether a tuple holds anything but zeros and False."""
    return isinstance(value, tuple) and any(value)
