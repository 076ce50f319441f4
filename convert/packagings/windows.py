"""Reads sliding windows and causality of a drafter's layers from published configs."""

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
    """The canonical keys `windows`, `causal` and `window_by_row`, without those that are all off.

    Args:
        source: the checkpoint.
        values: the object with `layer_types` and `sliding_window`.
        layers: number of layers.
        causal: whether all layers are causal, if the config says so; None makes sliding layers
            causal and full ones not.
        less: rows of the config's window that are not committed rows before the anchor.
        by_row: see `DSparkConfig.window_by_row`.

    Raises:
        InputError: a kind of layer is unknown, their number is not `layers`, or sliding layers have
            no window.
    """
    kinds = source.layer_types(layers, values, (FULL, SLIDING))
    sliding = [kind == SLIDING for kind in kinds]
    window = source.whole("sliding_window", values) - less if any(sliding) else 0
    found = {
        "windows": tuple(window if one else 0 for one in sliding),
        "causal": tuple(one if causal is None else causal for one in sliding),
        "window_by_row": by_row,
    }
    # The canonical config leaves a key out when it is off for every layer.
    return {name: value for name, value in found.items() if value is True or _any_of(value)}


def _any_of(value: object) -> bool:
    """True for a tuple with an element other than 0 and False."""
    return isinstance(value, tuple) and any(value)
