"""The requests that one round is run for: one alone, or several whose forwards are batches."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol

import mlx.core as mx

from ..caches import cache_arrays
from ..caches.batch import alone, join, rows_of
from ..drafters.batch import ContextBatch, Wanted, context_batch
from ..schedulers.batch import BatchSchedule
from ..targets.rollback import Rollback
from ..types import Draft, Round
from .state import Engine, State, VerifyForward
from .timer import RoundTimer

_UNGUARDED = contextlib.nullcontext()

Started = tuple[Sequence[mx.array], mx.array, list[mx.array], Rollback]
"""Each request's logits `[rows, vocabulary]`; tokens, taps and rollback of the `VerifyForward`."""


class Group(Protocol):
    """Requests that draft in one forward and verify in one forward.

    Attributes:
        engine: target, drafter and scheduler.
        states: of the requests.
        next_step: the next plain step of all of them, if it was started already.
        timer: of the round that runs.
        schedule: schedules all blocks together; None where each request's policy schedules its own.
    """

    engine: Engine
    states: list[State]
    next_step: VerifyForward | None
    timer: RoundTimer
    schedule: BatchSchedule | None

    def draft(self, wanted: Sequence[Wanted]) -> list[Draft | None]:
        """A block for each request that wants one."""
        ...

    def verify(self, rows: Sequence[mx.array]) -> Started:
        """Run the target over each request's rows, int32 `[width]` each."""
        ...

    def keep(self, forward: VerifyForward, kept: Sequence[int]) -> None:
        """Cut a forward back to each request's accepted rows, which join the drafter's contexts."""
        ...

    def context_arrays(self) -> list[mx.array]:
        """Every array of the drafter's contexts."""
        ...

    def own_code(self, state: State) -> contextlib.AbstractContextManager[None]:
        """Runs code that a request brought along, such as its logits processors."""
        ...

    def learned(self, state: State, round_: Round) -> Round:
        """Let a request's policy learn from its round; returns the round with why it is so."""
        ...


class Solo:
    """A request alone: its own caches, and the kernels of a batch of one.

    Args:
        engine: see `Group`.
        state: the request's.
    """

    def __init__(self, engine: Engine, state: State) -> None:
        self.schedule: BatchSchedule | None = None
        self.engine = engine
        self.states = [state]
        self.timer = RoundTimer()

    @property
    def next_step(self) -> VerifyForward | None:
        """See `Group`."""
        return self.states[0].next_step

    @next_step.setter
    def next_step(self, step: VerifyForward | None) -> None:
        self.states[0].next_step = step

    def draft(self, wanted: Sequence[Wanted]) -> list[Draft | None]:
        """See `Group.draft`."""
        speculation, (one,) = self.states[0].speculation, wanted
        assert speculation is not None and one.pick is not None
        return [speculation.drafter.draft(speculation.context, one.anchor, one.pick)]

    def verify(self, rows: Sequence[mx.array]) -> Started:
        """See `Group.verify`."""
        (state,) = self.states
        logits, taps, rollback = self.engine.target.verify(rows[0], state.caches, state.forward)
        return [logits], rows[0], taps, rollback

    def keep(self, forward: VerifyForward, kept: Sequence[int]) -> None:
        """See `Group.keep`."""
        with self.timer.rollback():
            forward.rollback.keep(kept[0])
        speculation = self.states[0].speculation
        if speculation:
            context = speculation.context
            speculation.drafter.extend(context, forward.taps, forward.tokens, kept[0])

    def context_arrays(self) -> list[mx.array]:
        """See `Group.context_arrays`."""
        speculation = self.states[0].speculation
        return speculation.context.arrays() if speculation else []

    def own_code(self, state: State) -> contextlib.AbstractContextManager[None]:
        """See `Group.own_code`; nobody else is concerned by what it raises."""
        return _UNGUARDED

    def learned(self, state: State, round_: Round) -> Round:
        """See `Group.learned`."""
        state.count(round_)
        state.policy.learn(round_)
        if state.learning:
            return replace(round_, decision=state.learning.decision)
        return round_


class Batch:
    """Several requests, whose caches and drafter contexts are joined.

    Args:
        engine, schedule: see `Group`.
        states: of the requests; their caches are the batch's from now on.
        caches: joined, in the order of the states.
        contexts: the drafter's, in the same order; None without a drafter.
    """

    def __init__(
        self,
        engine: Engine,
        schedule: BatchSchedule | None,
        states: list[State],
        caches: list[Any],
        contexts: ContextBatch | None,
        next_step: VerifyForward | None = None,
    ) -> None:
        self.engine = engine
        self.schedule = schedule
        self.states = states
        self.timer = RoundTimer()
        self.next_step = next_step
        self._caches = caches
        self._contexts = contexts
        for state in states:
            state.caches = []

    @classmethod
    def of(cls, engine: Engine, schedule: BatchSchedule | None, states: list[State]) -> Batch:
        """A batch of requests that have read their prompts; none has a `next_step`."""
        contexts = [state.speculation.context for state in states if state.speculation]
        joined = context_batch(engine.drafter, contexts) if engine.drafter else None
        return cls(engine, schedule, states, join([_caches(engine, s) for s in states]), joined)

    def with_(self, staying: Sequence[int], joining: list[State]) -> Batch:
        """The batch of the requests at some indices, and of others that join it.

        This batch is not usable any more. Whoever leaves it goes on only after `leave`.
        """
        states, caches, contexts = self.states, self._caches, self._contexts
        next_step = self.next_step
        assert not (joining and next_step), "a request joins between steps"
        if len(staying) < len(states):
            states, caches = [states[i] for i in staying], rows_of(caches, staying)
            contexts = contexts and contexts.rows(staying)
            next_step = next_step and next_step.of(staying)
        if joining:
            new = [state.speculation.context for state in joining if state.speculation]
            contexts = contexts and contexts.joined(new)
            caches = join([caches, *(_caches(self.engine, state) for state in joining)])
        return Batch(self.engine, self.schedule, [*states, *joining], caches, contexts, next_step)

    def leave(self, index: int) -> None:
        """Give the request at an index its caches back, and its part of the next step."""
        state = self.states[index]
        state.caches = alone(self._caches, index)
        arrays = cache_arrays(state.caches)
        if self._contexts and state.speculation:
            self._contexts.alone(index)
            arrays += state.speculation.context.arrays()
        if self.next_step:
            state.next_step = self.next_step.alone(index)
            arrays += state.next_step.taps
        # Its next round may be computed by another thread.
        mx.async_eval(arrays)

    def finish(self) -> None:
        """Wait for `next_step`, so that nothing still runs when the requests have left."""
        if self.next_step:
            mx.eval([part.packed.array for part in self.next_step.judged if part])

    def draft(self, wanted: Sequence[Wanted]) -> list[Draft | None]:
        """See `Group.draft`."""
        assert self._contexts is not None
        return self._contexts.draft(wanted)

    def verify(self, rows: Sequence[mx.array]) -> Started:
        """See `Group.verify`."""
        tokens = mx.stack(list(rows))
        logits, taps, rollback = self.engine.target.verify(tokens, self._caches)
        return [logits[i] for i in range(len(rows))], tokens, taps, rollback

    def keep(self, forward: VerifyForward, kept: Sequence[int]) -> None:
        """See `Group.keep`."""
        with self.timer.rollback():
            forward.rollback.keep_each(kept)
        if self._contexts:
            self._contexts.extend(forward.taps, forward.tokens, kept)

    def context_arrays(self) -> list[mx.array]:
        """See `Group.context_arrays`."""
        return self._contexts.arrays() if self._contexts else []

    def own_code(self, state: State) -> contextlib.AbstractContextManager[None]:
        """See `Group.own_code`; what it raises ends this request alone."""
        return Isolated(state)

    def learned(self, state: State, round_: Round) -> Round:
        """See `Group.learned`; the round's time is that of all requests."""
        state.count(round_)
        if self.schedule is None:
            with self.own_code(state):
                state.policy.learn(replace(round_, seconds=0.0, host_seconds=0.0))
        return round_


def _caches(engine: Engine, state: State) -> list[Any]:
    """A request's caches, which the forward of a batch does not quantize."""
    engine.target.cache_settings.quantize(state.caches)
    return state.caches


class Isolated:
    """Keeps what is raised as the `error` of some requests, which ends them; the others go on.

    What the requests do not isolate, such as Ctrl-C, ends them too and is raised.

    Args:
        states: of the requests that it concerns.
    """

    def __init__(self, *states: State) -> None:
        self._states = states

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is None:
            return False
        for state in self._states:
            state.error = state.error or error
        return isinstance(error, (Exception, *(state.isolates for state in self._states)))
