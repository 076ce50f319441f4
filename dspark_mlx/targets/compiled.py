"""Verify forwards as compiled graphs: Python and mlx-lm's modules run once for each form of them.

On a quick GPU a round waits for the host, and much of that is Python that builds the same graph
again. A graph is made for each number of requests, rows and slots that occurs, and once more in
each thread, since MLX keeps what it compiles by thread. It holds the model's arrays, so that a
model whose arrays were exchanged gets new ones.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn

from ..caches.slots import SlotCache, Slots, have_slots, slots_after, store_in, stored_in
from .model_arrays import ModelArrays

Run: TypeAlias = Callable[[mx.array, list[Any]], tuple[mx.array, list[mx.array]]]
"""Runs a model over tokens int `[batch, rows]` and caches; gives logits and taps."""

_Compiled: TypeAlias = Callable[
    [mx.array, mx.array, Sequence[mx.array]], tuple[mx.array, list[mx.array], list[mx.array]]
]

MOST_GRAPHS = 64
"""Graphs that are held at most, of some megabytes each; the one that was used least recently goes
first."""


class CompiledForwards:
    """The compiled forwards of one target; to be called under its turns.

    Args:
        model: its network.
        run: runs it, and takes its taps.
        version: of what stands in the model's modules; graphs of another one are not run.
        least: fewest rows of a request alone whose forwards are compiled.
        most: most slots that they read; a forward over more is not compiled.
        batches: whether those of batches are compiled.

    Attributes:
        version, least, most, batches: see above.
    """

    def __init__(
        self,
        model: nn.Module,
        run: Run,
        version: int,
        least: int = 2,
        most: int = sys.maxsize,
        batches: bool = True,
    ) -> None:
        self.version, self.least, self.most, self.batches = version, least, most, batches
        self._model, self._run = model, run
        self._graphs: OrderedDict[tuple[int, ...], _Compiled] = OrderedDict()
        self._arrays = ModelArrays(model)
        self._unchecked = False

    def anew(self, version: int, run: Run | None = None) -> CompiledForwards:
        """The same forwards without a graph, of another version or of another target's taps."""
        limits = self.least, self.most, self.batches
        return CompiledForwards(self._model, run or self._run, version, *limits)

    def __call__(
        self, tokens: mx.array, caches: list[Any]
    ) -> tuple[mx.array, list[mx.array]] | None:
        """A forward that writes the caches.

        Args:
            tokens: int `[rows]`, or `[batch, rows]` for a batch.
            caches: the request's, or the batch's.

        Returns:
            Logits and taps, as `tap.Target` gives them; None where such a forward is not compiled,
            and nothing was done.
        """
        if tokens.ndim == 1:
            if tokens.size < self.least:
                return None
            made = self(tokens[None], caches)
            return made and (made[0].squeeze(0), [tap.squeeze(0) for tap in made[1]])
        requests, rows = tokens.shape
        if not have_slots(caches) or (requests > 1 and not self.batches):
            return None
        slots = slots_after(caches, rows)
        if slots > self.most:
            return None
        if self._unchecked:
            self._drop_old()
        graph = self._graph(requests, rows, slots)
        stored, offset = stored_in(caches, slots)
        logits, taps, written = graph(tokens, offset, stored)
        store_in(caches, written, rows)
        return logits, taps

    def renew(self) -> None:
        """Look before the next forward whether the model still has the arrays that graphs hold.

        Any thread may call it, while another one runs a forward.
        """
        self._unchecked = True

    def _drop_old(self) -> None:
        self._unchecked = False
        if not self._arrays.unchanged:
            self._graphs.clear()
            self._arrays = ModelArrays(self._model)

    def _graph(self, requests: int, rows: int, slots: int) -> _Compiled:
        form = requests, rows, slots
        if form not in self._graphs:
            self._graphs[form] = self._compiled(rows, slots)
            if len(self._graphs) > MOST_GRAPHS:
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
