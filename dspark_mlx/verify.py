"""Verify and commit: launch the target over a block, wait for it, keep what it accepts."""

from __future__ import annotations

from time import perf_counter

import mlx.core as mx

from .cache import commit
from .engine import Engine, Flight, State
from .sampling import greedy, pack_greedy, read_verdict
from .types import Draft, Verdict


def launch(
    engine: Engine,
    state: State,
    anchor: mx.array,
    draft: Draft | None = None,
    scheduled: int = 0,
) -> Flight:
    """Start the verify forward over [anchor, x_1..x_scheduled], padded where that is cheaper.

    Args:
        engine: whose target runs.
        state: whose caches it writes.
        anchor: int `[rows]`; more than the anchor only for the end of a prompt, without a draft.
        draft: the block; None for a plain step.
        scheduled: its tokens to verify.
    """
    tokens, rows = anchor, anchor.size
    if draft is not None:
        rows = engine.rows(scheduled + 1, state.position)
        # What pads is verified too and then ignored: nothing of it may be committed.
        block = draft.tokens[: rows - 1]
        padding = [anchor] * (rows - 1 - block.size)
        tokens = mx.concatenate([anchor, block, *padding]) if rows > 1 else anchor
    logits, taps = engine.target(tokens, state.caches)
    started = perf_counter()
    best = greedy(logits)
    packed = pack_greedy(best[: scheduled + 1], draft, scheduled)
    build_seconds = perf_counter() - started
    mx.async_eval(packed)
    return Flight(scheduled, rows, best, taps, packed, build_seconds)


def land(engine: Engine, state: State, flight: Flight) -> tuple[Verdict, float]:
    """Wait for a forward and commit what it says; returns the verdict and Python's time for it."""
    verdict = read_verdict(flight.packed, flight.scheduled)
    started = perf_counter()
    kept = len(verdict.tokens)
    commit(state.caches, flight.rows, kept)
    state.position += kept
    state.anchor = flight.best[kept - 1 : kept]
    if engine.drafter and state.context:
        engine.drafter.extend(state.context, [tap[:kept] for tap in flight.taps])
        state.context.commit(verdict.tokens)
    return verdict, flight.build_seconds + perf_counter() - started
