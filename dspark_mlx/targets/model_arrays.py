"""Whether a model still has its arrays: weights may be exchanged, or an adapter be put in."""

from __future__ import annotations

import weakref

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten


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
    return [array for _, array in tree_flatten(model.parameters())]
