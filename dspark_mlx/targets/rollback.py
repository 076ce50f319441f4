"""Cutting a verify forward back to the rows that were accepted, whatever the caches are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ..caches import is_recurrent, keep_rows, keep_rows_each, leaves, snapshot, unread_arrays
from ..caches.batch import rows_of_states
from .mixers import KeptRows, MixerCall, Mixers
from .turns import Turns


class Rollback:
    """What one forward over `width` rows left for being cut back; belongs to that forward alone.

    Args:
        mixers, turns: the target's.
        caches: the request's or the batch's, before the forward.
        width: rows, of each request.

    Attributes:
        calls: of the mixers in the forward; empty where it has one row only.
    """

    def __init__(self, mixers: Mixers, turns: Turns, caches: list[Any], width: int) -> None:
        self.calls: list[MixerCall] = []
        self._mixers = mixers
        self._turns = turns
        self._caches = caches
        self._width = self._kept = width
        # A single row is always kept.
        self._before = snapshot(caches) if width > 1 else None

    def keep(self, n: int) -> None:
        """Keep the first `n` rows, at least one; may be called again to keep fewer.

        The recurrent states are put back and the mixers run again over the kept rows. Where all
        rows are kept nothing is computed.
        """
        if n < self._kept:
            with self._turns:
                keep_rows(self._caches, self._kept, n, self._before)
                for call in self.calls:
                    self._mixers.run_again(call, KeptRows(self._width, n))
            self._kept = n
        mx.async_eval(self.states())

    def keep_each(self, kept: Sequence[int]) -> None:
        """Keep the first `kept[i]` rows of request i of a batch, at least one; to be called once.

        Positions of attention move by each request's own number. For recurrent states the mixers
        run again once for each number that occurs, over the requests that keep so many.
        """
        if min(kept) < self._width:
            with self._turns:
                keep_rows_each(self._caches, self._width, kept)
                self._compute_states(kept)
        mx.async_eval(self.states())

    def _compute_states(self, kept: Sequence[int]) -> None:
        found = zip(leaves(self._caches), self._before or [], strict=True)
        before = [(leaf, states) for leaf, states in found if is_recurrent(leaf)]
        after = [(leaf, list(leaf.cache)) for leaf, _ in before]
        order: list[int] = []
        parts: list[list[list[mx.array]]] = [[] for _ in before]
        for n in sorted(set(kept)):
            requests = [i for i, rows in enumerate(kept) if rows == n]
            order += requests
            for leaf, states in after if n == self._width else before:
                leaf.cache = rows_of_states(states, requests)
            if n < self._width:
                rows = KeptRows(self._width, n, len(kept), tuple(requests))
                for call in self.calls:
                    self._mixers.run_again(call, rows)
            for (leaf, _), part in zip(before, parts, strict=True):
                part.append(list(leaf.cache))
        places = np.argsort(order).tolist()
        for (leaf, _), part in zip(before, parts, strict=True):
            states = [mx.concatenate(list(groups)) for groups in zip(*part, strict=True)]
            leaf.cache = rows_of_states(states, places)

    def states(self) -> list[mx.array]:
        """Arrays for evaluation before another thread may go on: no logit needs them."""
        return unread_arrays(self._caches)
