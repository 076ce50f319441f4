"""A model's tapped layers: each records its output during the model's own forward.

A tapped layer object becomes an instance of a subclass of its class, whose call records its output.
Other models and the class itself do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import InputError
from .hidden import entering_hidden, leaving_hidden
from .mixers import Mixers
from .tables import final_norm


def check_layers(taps: Iterable[int], layers: int, where: object) -> None:
    """Refuse taps that are no layers of a model.

    Args:
        taps: see `tap.Target`.
        layers: number of the model's layers.
        where: names the model in errors.

    Raises:
        InputError: a tap is outside of them.
    """
    outside = [tap for tap in taps if not -1 <= tap < layers]
    if outside:
        raise InputError(where, f"{layers} layers", f"layers to tap at {outside}")


class TappedLayers:
    """What records taps in a model; all targets of the model share it.

    The caller holds the model's turns.

    Args:
        model: an mlx-lm model.
        taps: layers to record the output of, -1 for the embedding output.
        where: names the model in errors.

    Attributes:
        mixers: the model's recurrent modules, which are attached with the taps.
        recorded: the last forward's output of each tap.
        version: changes with what is attached; putting the same back does not change it.

    Raises:
        InputError: the layers are tapped already, or cannot be.
    """

    def __init__(self, model: nn.Module, taps: Iterable[int], where: object) -> None:
        self._model, self._where = model, where
        self._layers: Sequence[nn.Module] = model.layers
        self._taps = set(taps)
        self._changed: list[tuple[nn.Module, type, type]] = []
        self.recorded: dict[int, mx.array] = {}
        self.version = 0
        self.mixers = Mixers(model)
        self._attach()

    def add(self, taps: Iterable[int]) -> None:
        """Record further layers too."""
        self.attach_anew(lambda: self._taps.update(taps))

    def attach_anew(self, change: Callable[[], None]) -> None:
        """Make a change to what is attached, or under it."""
        self.version += 1
        self.detach()
        self._changed.clear()
        change()
        self.mixers.renew()
        self._attach()

    def change_under(self, change: Callable[[], None]) -> None:
        """Make a change under what is attached, if anything is."""
        if self.mixers.attached:
            self.attach_anew(change)
        else:
            change()

    def detach(self) -> None:
        """Give every layer its own class again."""
        for layer, original, _ in self._changed:
            layer.__class__ = original
        self.mixers.detach()
        self.recorded.clear()

    def attach_again(self) -> None:
        """Attach what `detach` has removed."""
        self.mixers.attach()
        for layer, _, tapped in self._changed:
            layer.__class__ = tapped

    def _attach(self) -> None:
        # The input of layer 0 is the embedding output, after the family's scaling or norm.
        indices = {max(tap, 0) for tap in self._taps}
        if any(getattr(type(self._layers[i]), "_tapped", False) for i in indices):
            raise InputError(self._where, "a model that is tapped already", "one Target per model")
        parts = [(i, self._part_behind(i)) for i in self._taps if not self._is_called(i)]
        self.mixers.attach()
        for i in sorted(i for i in indices if callable(self._layers[i])):
            layer = self._layers[i]
            tapped = _tapped_class(layer, i, i in self._taps, -1 in self._taps, self.recorded)
            self._changed.append((layer, type(layer), tapped))
            layer.__class__ = tapped
        for i, part in parts:
            tapped = _tapped_part_class(part, i, self.recorded)
            self._changed.append((part, type(part), tapped))
            part.__class__ = tapped

    def _is_called(self, tap: int) -> bool:
        return callable(self._layers[max(tap, 0)])

    def _part_behind(self, tap: int) -> nn.Module:
        """The module that reads a layer's output, where the model calls the layers' parts itself.

        Raises:
            InputError: it has no name that is known here.
        """
        following = tap + 1
        if following < len(self._layers):
            part = self._layers[following].get("input_layernorm")
        else:
            part = final_norm(self._model)
        if part is None:
            found = f"{type(self._layers[0]).__name__}s, whose parts the model calls itself"
            raise InputError(self._where, found, "layers that are called as a whole, to be tapped")
        return part


def _tapped_class(
    layer: nn.Module, index: int, output: bool, entering: bool, recorded: dict[int, mx.array]
) -> type:
    original: Any = type(layer)
    call = original.__call__
    record_input = entering and index == 0

    def tapped_call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if record_input:
            recorded[-1] = entering_hidden(self, args, kwargs)
        result = call(self, *args, **kwargs)
        if output:
            recorded[index] = leaving_hidden(self, result)
        return result

    names = {"__call__": tapped_call, "_tapped": True, "__module__": original.__module__}
    return type(original.__name__, (original,), names)


def _tapped_part_class(part: nn.Module, tap: int, recorded: dict[int, mx.array]) -> type:
    """Records a layer's output where the next part reads it.

    A model may go through its layers twice: the last output of each counts, and what enters first.
    """
    original: Any = type(part)
    call = original.__call__

    def tapped_call(self: nn.Module, x: mx.array) -> mx.array:
        if tap >= 0 or tap not in recorded:
            recorded[tap] = x
        return call(self, x)

    names = {"__call__": tapped_call, "_tapped": True, "__module__": original.__module__}
    return type(original.__name__, (original,), names)
