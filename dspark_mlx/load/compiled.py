"""Compiles a target's verify forwards where that has won here."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

import mlx.core as mx
import numpy as np

from ..caches import cache_arrays, keep_rows, keep_rows_each
from ..caches.batch import can_join, join
from ..caches.slots import have_slots
from ..kernels.decision import Decision
from ..kernels.forwards import Apply, Forward, Forwards
from ..kernels.siblings import find_siblings
from ..kernels.store import Verdict, VerdictStore, stored_path
from ..kernels.whole import TOGETHER
from ..progress import progress_bar
from ..targets.compiled import CompiledForwards
from ..targets.tap import Target
from .kernels import here

COMPILED = "compiled"
"""The winner where compiled forwards are quicker."""
_NARROW, _BLOCK = 2, 8
_SHORT, _LONG = 64, 2048


def compile_forwards(target: Target, max_length: int | None = None) -> None:
    """Compile a target's verify forwards if they agree with those as they are and are quicker.

    Only on a GPU, where a round waits for the host, and where compiled forwards can write the
    target's caches. What the races have found is the target's `compiled_races`; what earlier runs
    found is used.

    Args:
        target: the target, with its kernels.
        max_length: positions that the target was made for; None where it does not say.
    """
    if mx.default_device().type != mx.DeviceType.gpu or target.exact:
        return
    with target.turns:
        racing = _Racing(target, VerdictStore(stored_path()))
        if racing.possible:
            is_long = max_length is None or max_length >= _LONG + 2 * _BLOCK
            target.compiled_races = _raced(target, racing, is_long)


def _raced(target: Target, racing: _Racing, is_long: bool) -> dict[str, Verdict]:
    """Race forwards, those behind a long text where the target takes one, and let the target
    compile those that win."""
    found: dict[str, Verdict] = {}

    def wins(form: Form) -> bool:
        found[str(form)] = racing.compiled(form)
        return found[str(form)].winner == COMPILED

    if not wins(Form(_BLOCK)):
        return found
    # MLX's attention under a mask may cost more behind a long text than the host saves.
    long = Form(_BLOCK, positions=_LONG)
    most = sys.maxsize if is_long and wins(long) else _LONG // 2
    # Without a time it was wrong there, and nobody knows from where on.
    if is_long and not found[str(long)].times:
        return found
    # Attention of few rows is not the same operation as that of more.
    least = _NARROW if wins(Form(_NARROW)) else _NARROW + 2
    batches = can_join(target.new_caches()) and wins(Form(_BLOCK, requests=2))
    target.use_compiled(least=least, most=most, batches=batches)
    # The host may have taken what shared launches save before.
    together = racing.together()
    return found | ({TOGETHER: together} if together else {})


@dataclass(frozen=True)
class Form:
    """Form of a forward.

    Attributes:
        rows: rows of each request.
        positions: length of the text behind which it runs.
        requests: how many.
    """

    rows: int
    positions: int = _SHORT
    requests: int = 1

    def __str__(self) -> str:
        of = "" if self.requests == 1 else f" of {self.requests} requests"
        return f"{self.rows} rows{of} behind {self.positions} positions"


class _Compiling:
    """Compiled forwards in a target's use, until `close`.

    Args:
        target: the target.
        forwards: those to use.
    """

    def __init__(self, target: Target, forwards: CompiledForwards) -> None:
        self._target = target
        target.compiled = forwards

    def close(self) -> None:
        """See the class."""
        self._target.compiled = None


class _Sharing:
    """Shared launches in a target's use, with graphs of them, until `close`.

    Args:
        target: the target, whose forwards are compiled.
        shared: its kernels with the matrices that share launches.
        forwards: hold the graphs of them, which are made once.
    """

    def __init__(self, target: Target, shared: Decision, forwards: CompiledForwards) -> None:
        assert target.kernels is not None and target.compiled is not None
        self._target = target
        self._before = target.kernels, target.compiled
        self._use(shared, forwards)

    def close(self) -> None:
        """See the class."""
        self._use(*self._before)

    def _use(self, decision: Decision, forwards: CompiledForwards) -> None:
        self._target.use_kernels(decision)
        # Graphs that were made before are of the same modules again.
        forwards.version = self._target.version
        self._target.compiled = forwards


class _Racing:
    """Races of one target's compiled forwards; to be used under its turns.

    Args:
        target: the target, whose forwards are not compiled until a method says so.
        store: what was found before.

    Attributes:
        possible: whether compiled forwards can write its caches.
    """

    def __init__(self, target: Target, store: VerdictStore) -> None:
        self._target, self._store = target, store
        target.compiled = None
        self._caches = target.new_caches()
        target(_ids(target, _SHORT), self._caches)
        mx.eval(cache_arrays(self._caches))
        self.possible = have_slots(self._caches)

    def compiled(self, form: Form) -> Verdict:
        """Compiled forwards against those that Python builds."""
        target = self._target
        forwards = target.use_compiled()
        target.compiled = None
        return self._race(form, COMPILED, partial(_Compiling, target, forwards))

    def together(self) -> Verdict | None:
        """Matrices of the same rows in one launch, where that was right and gained too little.

        If they win, they are in use.
        """
        target, decision = self._target, self._target.kernels
        if decision is None or decision.together is None or target.compiled is None:
            return None
        # Times say that nothing but speed was against it.
        if decision.siblings or not decision.together.times:
            return None
        with target.untapped():
            run = partial(target.model, _ids(target, _BLOCK)[None], cache=target.new_caches())
            siblings = find_siblings(target.model, _BLOCK, run, decision.chosen)
        shared = replace(decision, siblings=siblings)
        forwards = target.compiled.anew(target.version)
        sharing = partial(_Sharing, target, shared, forwards)
        verdict = self._race(Form(_BLOCK), TOGETHER, sharing)
        if verdict.winner == TOGETHER:
            target.use_kernels(replace(shared, together=verdict))
        return verdict

    def _race(self, form: Form, name: str, apply: Apply) -> Verdict:
        network = self._target.model
        key = here().compiled_key(network, str(form), [name, *_beside(self._target)])
        known = self._store.get(key)
        if known is None:
            race = Forwards(network, self._forward(form), perf_counter).race
            with progress_bar("Compiling forwards, some seconds", "forward", delay=1.0):
                known = race(form.rows, [], name, [apply])
            self._store.put(key, known)
        return known

    def _forward(self, form: Form) -> Forward:
        """Two forwards in a row, of which the first keeps about half of its rows."""
        target, caches = self._target, _lengthened(self._caches, form.positions)
        if form.requests > 1:
            caches = join([caches] * form.requests)

        def forward(rows: int) -> mx.array:
            tokens, kept = _ids(target, rows * form.requests), (rows + 1) // 2
            if form.requests == 1:
                _, _, rollback = target.verify(tokens, caches)
                rollback.keep(kept)
                logits, _, _ = target.verify(tokens, caches)
                keep_rows(caches, kept + rows, 0)
                return logits
            tokens = tokens.reshape(-1, rows)
            # One request keeps all rows, so that they stand at different positions.
            each = [rows, *[kept] * (form.requests - 1)]
            _, _, rollback = target.verify(tokens, caches)
            rollback.keep_each(each)
            logits, _, _ = target.verify(tokens, caches)
            keep_rows_each(caches, 2 * rows, [rows - n for n in each])
            return logits

        return forward


def _lengthened(caches: list[Any], positions: int) -> list[Any]:
    """Copies of caches of `_SHORT` positions whose keys and values repeat to so many."""
    times = (1, 1, positions // _SHORT, 1)
    made = list(map(copy.copy, caches))
    for cache in made:
        cache.keys, cache.values = (
            mx.tile(stored[..., :_SHORT, :], times) for stored in (cache.keys, cache.values)
        )
        cache.offset = positions
    mx.eval(cache_arrays(made))
    return made


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
