"""Cutting a verify forward back to the rows that were accepted, whatever the caches are."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from ..caches import keep_rows, recurrent_arrays, snapshot
from .mixers import MixerCall, Mixers
from .turns import Turns


class Rollback:
    """What one forward over `width` rows left for being cut back; belongs to that forward alone.

    Args:
        mixers, turns: the target's.
        caches: the request's, before the forward.
        width: rows.

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
                    self._mixers.run_again(call, self._width, n)
            self._kept = n
        mx.async_eval(self.states())

    def states(self) -> list[mx.array]:
        """Arrays for evaluation before another thread may go on: no logit needs them."""
        return recurrent_arrays(self._caches) if self._mixers.modules else []
