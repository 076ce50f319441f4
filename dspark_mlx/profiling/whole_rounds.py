"""What rounds of the decode loop take beyond their forwards: Python's own work, and its waits.

Where forwards take milliseconds, as on a GPU, that is a large part of a plain step. A profile of
bare forwards would take plain decoding for faster than it is.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import replace

from ..engine.rounds import rounds
from ..engine.state import Engine
from ..sampling.make import make_sampler
from ..sampling.settings import Sampling
from ..schedulers import Scheduler
from ..schedulers.fixed import FixedScheduler
from ..schedulers.full import FullScheduler

_PLAIN_ROUNDS, _DRAFTED_ROUNDS = 8, 5
# The first step of a plain stretch starts two forwards, the first drafted rounds may compile.
_FIRST = 2


def added_by_rounds(
    engine: Engine, prompt: Sequence[int], plain: float, drafted: float
) -> tuple[float, float]:
    """Milliseconds that a plain step and a drafted round take beyond their forwards; at least 0.

    Args:
        engine: target, and drafter if there is one; its scheduler and kept prompts are not used.
        prompt: token ids that the measured request continues.
        plain: what a plain step's forwards take, in milliseconds.
        drafted: what a draft and the verify forward of a whole block take.
    """
    measured = _median(engine, FixedScheduler(0), prompt, _PLAIN_ROUNDS)
    if engine.drafter is None:
        return max(measured - plain, 0.0), 0.0
    whole = _median(engine, FullScheduler(), prompt, _DRAFTED_ROUNDS)
    return max(measured - plain, 0.0), max(whole - drafted, 0.0)


def _median(engine: Engine, scheduler: Scheduler, prompt: Sequence[int], count: int) -> float:
    """Median milliseconds of so many rounds, after the first ones and before the last."""
    engine = replace(engine, scheduler=scheduler, profile=None, kept=None)
    sampler = make_sampler(Sampling(), engine.target.vocab_size)
    most = (_FIRST + count + 1) * (engine.drafter.config.gamma + 1 if engine.drafter else 1)
    made = rounds(engine, prompt, max_tokens=most, stop_tokens=(), sampler=sampler)
    # The prefill's own round comes first.
    taken = [each.seconds for each in itertools.islice(made, 1 + _FIRST, 1 + _FIRST + count)]
    made.close()
    return 1e3 * statistics.median(taken)
