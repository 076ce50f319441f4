"""Compiles a target's verify forwards where that has won here."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from time import perf_counter

import mlx.core as mx
import numpy as np

from ..caches import cache_arrays, keep_rows
from ..caches.slots import have_slots
from ..kernels.forwards import Apply, Forwards
from ..kernels.siblings import find_siblings
from ..kernels.store import STOCK, Verdict, VerdictStore, stored_path
from ..kernels.whole import TOGETHER
from ..progress import progress_bar
from ..targets.compiled import CompiledForwards
from ..targets.tap import Target
from .kernels import here

COMPILED = "compiled"
"""The winner where compiled forwards are quicker."""
_NARROW, _BLOCK = 2, 8
_CONTEXT = 64


def compile_forwards(target: Target) -> dict[str, Verdict]:
    """Compile a target's verify forwards if they agree with those as they are and are quicker.

    Only on a GPU, where a round waits for the host. Forwards of 2 rows and of 8 are raced, since
    attention of few rows and of more is not the same operation; then shared launches once more, if
    the host took what they save before. What earlier runs found is used.

    Args:
        target: the target, with its kernels.

    Returns:
        What was found, by what was raced; empty where nothing can be compiled.
    """
    if mx.default_device().type != mx.DeviceType.gpu or target.exact:
        return {}
    with target.turns:
        racing = _Racing(target, VerdictStore(stored_path()))
        if not racing.possible:
            return {}
        found = {f"{_BLOCK} rows": racing.compiled(_BLOCK)}
        if found[f"{_BLOCK} rows"].winner == STOCK:
            target.compiled = None
            return found
        found[f"{_NARROW} rows"] = narrow = racing.compiled(_NARROW)
        target.use_compiled(_NARROW if narrow.winner == COMPILED else _NARROW + 2)
        together = racing.together()
        return found | ({TOGETHER: together} if together else {})


class _Compiling:
    """Compiled forwards in a target's use, until `close`.

    Args:
        target: the target.
        forwards: those to use.
        others: those to use after `close`; None to let Python build each forward.
    """

    def __init__(
        self, target: Target, forwards: CompiledForwards, others: CompiledForwards | None
    ) -> None:
        self._target, self._others = target, others
        target.compiled = forwards

    def close(self) -> None:
        """See the class."""
        self._target.compiled = self._others


class _Racing:
    """Races of one target's compiled forwards; to be used under its turns.

    Args:
        target: the target.
        store: what was found before.
    """

    def __init__(self, target: Target, store: VerdictStore) -> None:
        self._target, self._store = target, store
        target.compiled = None
        self._caches = target.new_caches()
        target(_ids(target, _CONTEXT), self._caches)
        mx.eval(cache_arrays(self._caches))
        self.possible = have_slots(self._caches)

    def compiled(self, rows: int) -> Verdict:
        """Compiled forwards against those that Python builds."""
        target = self._target
        forwards = target.use_compiled(_NARROW)
        target.compiled = None
        return self._race(rows, COMPILED, partial(_Compiling, target, forwards, None))

    def together(self) -> Verdict | None:
        """Matrices of the same rows in one launch, where that was right and gained too little.

        If they win, they are in use.
        """
        target, decision = self._target, self._target.kernels
        before = target.compiled
        if decision is None or decision.together is None or before is None:
            return None
        # Times say that nothing but speed was against it.
        if decision.siblings or not decision.together.times:
            return None
        with target.untapped():
            run = partial(target.model, _ids(target, _BLOCK)[None], cache=target.new_caches())
            siblings = find_siblings(target.model, _BLOCK, run, decision.chosen)
        target.use_kernels(replace(decision, siblings=siblings))
        after = target.use_compiled(before.least)
        # Graphs are of the modules as they were when they were made.
        target.compiled, before.version = before, after.version
        verdict = self._race(_BLOCK, TOGETHER, partial(_Compiling, target, after, before))
        if verdict.winner == TOGETHER:
            target.use_kernels(replace(decision, siblings=siblings, together=verdict))
        else:
            target.use_kernels(decision)
        target.use_compiled(before.least)
        return verdict

    def _race(self, rows: int, name: str, apply: Apply) -> Verdict:
        key = here().compiled_key(self._target.model, rows, [name, *_beside(self._target)])
        known = self._store.get(key)
        if known is None:
            race = Forwards(self._target.model, self._forward, perf_counter).race
            with progress_bar("Compiling forwards, some seconds", "forward", delay=1.0):
                known = race(rows, [], name, [apply])
            self._store.put(key, known)
        return known

    def _forward(self, rows: int) -> mx.array:
        """Two forwards in a row, of which the first keeps about half of its rows."""
        tokens, kept = _ids(self._target, rows), (rows + 1) // 2
        _, _, rollback = self._target.verify(tokens, self._caches)
        rollback.keep(kept)
        logits, _, _ = self._target.verify(tokens, self._caches)
        keep_rows(self._caches, kept + rows, 0)
        return logits


def _ids(target: Target, count: int) -> mx.array:
    ids = np.random.default_rng(0).integers(0, target.vocab_size, count)
    return mx.array(ids.astype(np.int32))


def _beside(target: Target) -> list[str]:
    """The kernels in use, which are compiled with the forward."""
    decision = target.kernels
    if decision is None:
        return []
    names = {f"{linear}: {by[n].name}" for linear, by in decision.chosen.items() for n in by}
    together = TOGETHER if decision.siblings else ""
    return [*sorted(names), decision.attention.name if decision.attention else "", together]
