"""The decode loop: prefill, then rounds of draft, schedule, verify and commit.

Token ids only; knows nothing of text. Plain decoding is the same loop with nothing drafted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.generate import wired_limit

from .cache import cache_arrays, commit, new_caches
from .drafter import Drafter, DrafterContext
from .sampling import greedy, pack_greedy, read_verdict
from .schedulers import Scheduler, schedule
from .targets.tap import Target
from .types import Draft, Round, Verdict

Progress = Callable[[int, int], None]
"""Called with prompt tokens processed and prompt tokens in all."""


@dataclass(frozen=True)
class Engine:
    """What all requests share: the target, its drafter (None decodes plainly), the scheduler."""

    target: Target
    drafter: Drafter | None
    scheduler: Scheduler


@dataclass(frozen=True)
class Flight:
    """A verify forward under way.

    Attributes:
        scheduled: drafted tokens it verifies.
        best: the target's choice at each of its rows, int32 `[scheduled + 1]`.
        taps: the rows' features, one array a tap.
        packed: what the host will read of it, see `sampling.pack_greedy`.
        build_seconds: Python's time for the accept rule's part of the graph.
    """

    scheduled: int
    best: mx.array
    taps: list[mx.array]
    packed: mx.array
    build_seconds: float


@dataclass
class State:
    """One request between two rounds.

    Attributes:
        caches: the target's, holding every committed token but the anchor.
        context: the drafter's, likewise; None without a drafter.
        anchor: the newest committed token, int32 `[1]`.
        ahead: the next plain step, launched before the last one was read.
    """

    caches: list[Any]
    context: DrafterContext | None
    anchor: mx.array = field(default_factory=lambda: mx.zeros((1,), mx.int32))
    ahead: Flight | None = None


def rounds(
    engine: Engine,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    stop_tokens: Collection[int],
    prefill_step_size: int = 2048,
    progress: Progress | None = None,
) -> Iterator[Round]:
    """Decode greedily, one `Round` at a time; closing the iterator frees the request's caches.

    Args:
        engine: target, drafter and scheduler.
        prompt: token ids, at least one.
        max_tokens: tokens to commit at most, exactly kept.
        stop_tokens: ids that end the request; the one that did is the last token committed.
        prefill_step_size: prompt tokens per prefill forward.
        progress: called during the prefill.
    """
    target, drafter = engine.target, engine.drafter
    context = drafter.new_context() if drafter else None
    state = State(new_caches(target.model, "target"), context)
    remaining, stop = max_tokens, frozenset(stop_tokens)
    with wired_limit(target.model):
        started = perf_counter()
        verdict = _prefill(engine, state, prompt, prefill_step_size, progress)
        done = Round(verdict.tokens, prefill=True, seconds=perf_counter() - started)
        while True:
            remaining -= len(done.tokens)
            yield done
            if remaining == 0 or done.tokens[-1] in stop:
                return
            draw = _plain_round if drafter is None or remaining == 1 else _drafted_round
            done = _cut(draw(engine, state, remaining), stop)


def _prefill(
    engine: Engine,
    state: State,
    prompt: Sequence[int],
    step: int,
    progress: Progress | None,
) -> Verdict:
    """Run the prompt; all but its last token in chunks, whose logits are never computed."""
    tokens = mx.array(list(prompt), dtype=mx.int32)
    body = len(prompt) - 1
    if state.context and state.context.vocabulary:
        state.context.vocabulary.add(prompt)
    for start in range(0, body, step):
        if progress:
            progress(start, len(prompt))
        chunk = tokens[start : min(start + step, body)]
        _, taps = engine.target(chunk, state.caches)
        if engine.drafter and state.context:
            engine.drafter.extend(state.context, taps)
            engine.drafter.flush(state.context)
            mx.eval(state.context.arrays())
        mx.eval(cache_arrays(state.caches))
        mx.clear_cache()
    flight = _launch(engine, state, tokens[body:], None, 0)
    verdict, _ = _land(engine, state, flight)
    if progress:
        progress(len(prompt), len(prompt))
    return verdict


def _drafted_round(engine: Engine, state: State, remaining: int) -> Round:
    """Draft, schedule, verify, commit: one host synchronisation, two if confidence decides."""
    drafter, scheduler = engine.drafter, engine.scheduler
    assert drafter is not None and state.context is not None
    started = perf_counter()
    draft = drafter.draft(state.context, state.anchor, greedy)
    drafting = perf_counter() - started
    # The device drafts while Python builds the verify forward.
    mx.async_eval(draft.tokens)
    gamma = drafter.config.gamma
    confidence: list[float] = []
    if scheduler.reads_confidence:
        assert draft.confidence_logits is not None  # checked when the engine was made
        confidence = np.array(mx.sigmoid(draft.confidence_logits)).tolist()
    scheduled = schedule(scheduler, confidence, min(gamma, remaining - 1))
    flight = _launch(engine, state, state.anchor, draft, scheduled)
    verdict, committing = _land(engine, state, flight)
    return Round(
        verdict.tokens,
        drafted=gamma,
        scheduled=scheduled,
        accepted=verdict.accepted,
        confidence=verdict.confidence,
        seconds=perf_counter() - started,
        host_seconds=drafting + committing,
    )


def _plain_round(engine: Engine, state: State, remaining: int) -> Round:
    """One token; without a drafter the next step starts before this one is read."""
    started = perf_counter()
    flight = state.ahead or _launch(engine, state, state.anchor, None, 0)
    state.ahead = None
    if engine.drafter is None and remaining > 1:
        state.ahead = _launch(engine, state, flight.best, None, 0)
    verdict, committing = _land(engine, state, flight)
    seconds = perf_counter() - started
    return Round(verdict.tokens, seconds=seconds, host_seconds=committing)


def _launch(
    engine: Engine, state: State, anchor: mx.array, draft: Draft | None, scheduled: int
) -> Flight:
    """Start the verify forward over [anchor, x_1..x_scheduled]."""
    tokens = anchor
    if draft is not None and scheduled:
        tokens = mx.concatenate([anchor, draft.tokens[:scheduled]])
    logits, taps = engine.target(tokens, state.caches)
    started = perf_counter()
    best = greedy(logits)
    packed = pack_greedy(best, draft, scheduled)
    build_seconds = perf_counter() - started
    mx.async_eval(packed)
    return Flight(scheduled, best, taps, packed, build_seconds)


def _land(engine: Engine, state: State, flight: Flight) -> tuple[Verdict, float]:
    """Wait for a forward and commit what it says; returns the verdict and Python's time for it."""
    verdict = read_verdict(flight.packed, flight.scheduled)
    started = perf_counter()
    kept = len(verdict.tokens)
    commit(state.caches, flight.scheduled + 1, kept)
    state.anchor = flight.best[kept - 1 : kept]
    if engine.drafter and state.context:
        engine.drafter.extend(state.context, [tap[:kept] for tap in flight.taps])
        if state.context.vocabulary:
            state.context.vocabulary.commit(verdict.tokens)
    return verdict, flight.build_seconds + perf_counter() - started


def _cut(done: Round, stop: frozenset[int]) -> Round:
    """The round without what follows its first stop token."""
    for i, token in enumerate(done.tokens[:-1]):
        if token in stop:
            return replace(done, tokens=done.tokens[: i + 1], accepted=min(done.accepted, i + 1))
    return done
