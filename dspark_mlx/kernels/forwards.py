"""Races whole forwards of a network with kernels against those without: they agree, or lose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .decision import Undone
from .race import medians
from .store import STOCK, Verdict
from .trial import attempt

Forward: TypeAlias = Callable[[int], mx.array]
"""Runs the network over so many new rows; gives their logits, which are the same every time."""
Apply: TypeAlias = Callable[[], Undone]
"""Puts something into the network, over what is in it."""

TURNS, SECONDS = 15, 2.0

# Parts of the logits' spread by which forwards of other roundings differ.
AGREE = {mx.bfloat16: 0.05, mx.float16: 0.02, mx.float32: 1e-3}


class Forwards:
    """Races whole forwards of one network.

    Args:
        network: the network; nothing of it has changed when a race has ended.
        forward: see `Forward`.
        clock: gives seconds, as `time.perf_counter`.
    """

    def __init__(self, network: nn.Module, forward: Forward, clock: Callable[[], float]) -> None:
        self._network, self._forward, self._clock = network, forward, clock

    def race(
        self, rows: int, beside: Sequence[Apply], name: str, appliers: Sequence[Apply]
    ) -> Verdict:
        """Forwards with and without what `appliers` put in.

        Args:
            rows: rows of a forward.
            beside: puts in what takes part on both sides.
            name: the winner's name, if what is put in wins.
            appliers: see `Apply`.
        """
        reason = attempt(partial(self._disagreement, rows, beside, appliers))
        if reason is not None:
            return Verdict(STOCK, reason, {}, {})
        timed = {
            STOCK: lambda: self._run(rows, beside)[1],
            name: lambda: self._run(rows, [*beside, *appliers])[1],
        }
        times, wins = medians(timed, TURNS, SECONDS)
        gain = f"a whole forward reaches {times[STOCK] / times[name]:.2f}x MLX's speed"
        if wins[name]:
            return Verdict(name, gain, times, {})
        return Verdict(STOCK, f"{gain}, which is too little", times, {})

    def _run(self, rows: int, appliers: Sequence[Apply]) -> tuple[mx.array, float]:
        """The logits of a forward, and its seconds."""
        applied: list[Undone] = []
        try:
            applied += [apply() for apply in appliers]
            started = self._clock()
            logits = self._forward(rows)
            mx.eval(logits)
            return logits, self._clock() - started
        finally:
            for each in reversed(applied):
                each.close()

    def _disagreement(
        self, rows: int, beside: Sequence[Apply], appliers: Sequence[Apply]
    ) -> str | None:
        """Why two forwards' logits are not those of one network; None where they are."""
        own, got = self._run(rows, beside)[0], self._run(rows, [*beside, *appliers])[0]
        a, b = own.astype(mx.float32), got.astype(mx.float32)
        spread = float(np.array(mx.sqrt(mx.var(a))))
        error = float(np.array(mx.sqrt(mx.mean(mx.square(a - b)))))
        limit = AGREE[own.dtype] * spread
        if not error <= limit:  # NaN is not
            return f"a whole forward's logits differ by {error:.3g} where {limit:.3g} is allowed"
        return None
