"""Verify forwards as compiled graphs: Python and mlx-lm's modules run once for each form of them.

On a quick GPU a round waits for the host, and much of that is Python that builds the same graph
again. A graph is made for each number of requests, rows and slots that occurs. It holds the model's
arrays, so that a model whose arrays were exchanged gets new ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..caches.slots import SlotCache, Slots, have_slots, store_in, stored_in

Run: TypeAlias = Callable[[mx.array, list[Any]], tuple[mx.array, list[mx.array]]]
"""Runs a model over tokens int `[batch, rows]` and caches; gives logits and taps."""

_Compiled: TypeAlias = Callable[
    [mx.array, mx.array, Sequence[mx.array]], tuple[mx.array, list[mx.array], list[mx.array]]
]

MOST = 32
"""Graphs that are held at most; the one that was used least recently goes first."""


class CompiledForwards:
    """The compiled forwards of one target.

    Args:
        model: its network.
        run: runs it, and takes its taps.
        least: fewest rows of a request alone whose forwards are compiled.
        version: of what stands in the model's modules; graphs of another one are not run.

    Attributes:
        least, version: see above.
    """

    def __init__(self, model: nn.Module, run: Run, least: int, version: int) -> None:
        self.least = least
        self.version = version
        self._model, self._run = model, run
        self._graphs: OrderedDict[tuple[int, ...], _Compiled] = OrderedDict()
        self._arrays = _arrays_of(model)

    def __call__(
        self, tokens: mx.array, caches: list[Any]
    ) -> tuple[mx.array, list[mx.array]] | None:
        """A forward over tokens int `[batch, rows]`, which writes the caches.

        Returns:
            Logits and taps; None where a cache is of another kind, and nothing was done.
        """
        if not have_slots(caches):
            return None
        requests, rows = tokens.shape
        stored, offset, slots = stored_in(caches, rows)
        logits, taps, written = self._graph(requests, rows, slots)(tokens, offset, stored)
        store_in(caches, written, rows)
        return logits, taps

    def renew(self) -> None:
        """Drop graphs that hold arrays which the model no longer has."""
        arrays = _arrays_of(self._model)
        held = self._arrays
        if len(arrays) != len(held) or any(a is not b for a, b in zip(arrays, held, strict=True)):
            self._graphs.clear()
            self._arrays = arrays

    def _graph(self, requests: int, rows: int, slots: int) -> _Compiled:
        form = requests, rows, slots
        if form not in self._graphs:
            self._graphs[form] = self._compiled(rows, slots)
            if len(self._graphs) > MOST:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(form)
        return self._graphs[form]

    def _compiled(self, rows: int, slots: int) -> _Compiled:
        def forward(
            tokens: mx.array, offset: mx.array, stored: Sequence[mx.array]
        ) -> tuple[mx.array, list[mx.array], list[mx.array]]:
            places = Slots(offset, rows, slots)
            pairs = zip(stored[::2], stored[1::2], strict=True)
            caches = [SlotCache(keys, values, places) for keys, values in pairs]
            logits, taps = self._run(tokens, caches)
            return logits, taps, [a for cache in caches for a in (cache.keys, cache.values)]

        compiled: _Compiled = mx.compile(forward)
        return compiled


def _arrays_of(model: nn.Module) -> list[mx.array]:
    return [array for _, array in tree_flatten(model.parameters())]
