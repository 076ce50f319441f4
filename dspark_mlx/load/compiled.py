"""Compiles a target's verify forwards where that has won here."""

from __future__ import annotations

from functools import partial
from time import perf_counter
from typing import Any

import mlx.core as mx
import numpy as np

from ..caches import cache_arrays, keep_rows
from ..caches.slots import have_slots
from ..kernels.forwards import Forwards
from ..kernels.store import STOCK, Verdict, VerdictStore, stored_path
from ..progress import progress_bar
from ..targets.tap import Target
from .kernels import here

COMPILED = "compiled"
"""The winner where compiled forwards are quicker."""
_NARROW, _BLOCK = 2, 8
_CONTEXT = 64


def compile_forwards(target: Target) -> dict[int, Verdict]:
    """Compile a target's verify forwards if they agree with those as they are and are quicker.

    Only on a GPU, where a round waits for the host. Forwards of 2 rows and of 8 are raced, since
    attention of few rows and of more is not the same operation; what earlier runs found is used.

    Args:
        target: the target, with its kernels.

    Returns:
        What was found by number of rows; empty where nothing can be compiled.
    """
    if mx.default_device().type != mx.DeviceType.gpu or target.exact:
        return {}
    with target.turns:
        caches = _begun(target)
        if not have_slots(caches):
            return {}
        store, verdicts = VerdictStore(stored_path()), dict[int, Verdict]()
        target.use_compiled(_NARROW)
        for rows in (_BLOCK, _NARROW):
            key = here().compiled_key(target.model, rows, _beside(target))
            verdict = store.get(key)
            if verdict is None:
                with progress_bar("Compiling forwards, some seconds", "forward", delay=1.0):
                    verdict = _raced(target, caches, rows)
                store.put(key, verdict)
            verdicts[rows] = verdict
            if verdict.winner == STOCK:
                break
    if verdicts[_BLOCK].winner == STOCK:
        target.compiled = None
    else:
        narrow = _NARROW in verdicts and verdicts[_NARROW].winner != STOCK
        target.use_compiled(_NARROW if narrow else _NARROW + 2)
    return verdicts


class _Compiling:
    """Compiled forwards in a target's use, until `close`."""

    def __init__(self, target: Target) -> None:
        assert target.compiled is not None
        self._forwards = target.compiled
        self._forwards.used = True

    def close(self) -> None:
        """Let Python build each forward again."""
        self._forwards.used = False


def _begun(target: Target) -> list[Any]:
    caches = target.new_caches()
    target(_ids(target, _CONTEXT), caches)
    mx.eval(cache_arrays(caches))
    return caches


def _raced(target: Target, caches: list[Any], rows: int) -> Verdict:
    """Two forwards in a row, of which the first keeps about half of its rows."""
    tokens, kept = _ids(target, rows), (rows + 1) // 2

    def forward(rows: int) -> mx.array:
        _, _, rollback = target.verify(tokens, caches)
        rollback.keep(kept)
        logits, _, _ = target.verify(tokens, caches)
        keep_rows(caches, kept + rows, 0)
        return logits

    assert target.compiled is not None
    target.compiled.used = False
    race = Forwards(target.model, forward, perf_counter).race
    return race(rows, [], COMPILED, [partial(_Compiling, target)])


def _ids(target: Target, count: int) -> mx.array:
    ids = np.random.default_rng(0).integers(0, target.vocab_size, count)
    return mx.array(ids.astype(np.int32))


def _beside(target: Target) -> list[str]:
    """The kernels in use, which are compiled with the forward."""
    decision = target.kernels
    if decision is None:
        return []
    names = {f"{linear}: {by[n].name}" for linear, by in decision.chosen.items() for n in by}
    together = decision.together.winner if decision.together else ""
    return [*sorted(names), decision.attention.name if decision.attention else "", together]
