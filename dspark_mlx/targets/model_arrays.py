"""Whether a model still has its arrays: weights may be exchanged, or an adapter be put in."""

from __future__ import annotations

import weakref
from typing import Any

import mlx.core as mx
import mlx.nn as nn


class ModelArrays:
    """The arrays that a model has now; what is exchanged later is not held by it.

    Args:
        model: an mlx-lm model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._arrays = [weakref.ref(array) for array in _arrays_of(model)]

    @property
    def unchanged(self) -> bool:
        """Whether the model has these arrays and no others. Values that are written into an array
        are not seen."""
        now = _arrays_of(self._model)
        return len(now) == len(self._arrays) and all(
            reference() is array for reference, array in zip(self._arrays, now, strict=True)
        )


def _arrays_of(model: nn.Module) -> list[mx.array]:
    """A model's parameters in an order of its own; its `parameters` takes several times as long."""
    found: list[mx.array] = []
    left: list[Any] = [model]
    while left:
        value = left.pop()
        if isinstance(value, mx.array):
            found.append(value)
        elif isinstance(value, dict):  # as modules are
            left += [part for name, part in value.items() if not name.startswith("_")]
        elif isinstance(value, list | tuple):
            left += value
    return found
