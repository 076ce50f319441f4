"""Verify and commit: launch the target over a block, wait for it, keep what it accepts."""

from __future__ import annotations

from time import perf_counter

import mlx.core as mx

from ..caches import commit
from ..sampling import Place
from ..sampling.packing import pack, unpack
from ..types import Draft, Verdict
from .state import Engine, Flight, State


def launch(
    engine: Engine,
    state: State,
    draft: Draft | None = None,
    scheduled: int = 0,
    after: Flight | None = None,
) -> Flight:
    """Start the verify forward over [anchor, x_1..x_scheduled], padded where that is cheaper.

    Args:
        engine: whose target runs.
        state: whose caches it writes.
        draft: the block; None for a plain step.
        scheduled: its tokens to verify.
        after: a plain step that has not landed yet, which this one follows.
    """
    place, anchor = state.place, state.anchor
    if after is not None:
        anchor, before = after.last, after.place.prefix
        longer = None if before is None else mx.concatenate([before, anchor])
        place = Place(after.place.position + 1, longer)
    tokens = anchor
    if draft is not None:
        rows = engine.rows(scheduled + 1, place.position)
        # What pads is verified too and then ignored: nothing of it may be committed.
        block = draft.tokens[: rows - 1]
        padding = [anchor] * (rows - 1 - block.size)
        tokens = mx.concatenate([anchor, block, *padding]) if rows > 1 else anchor
    logits, taps = engine.target(tokens, state.caches)
    started = perf_counter()
    judgement = state.sampler.judge(logits[: scheduled + 1], place, draft)
    packed = pack(judgement, draft, scheduled)
    build_seconds = perf_counter() - started
    # All that outlives the round is evaluated with it: another thread may go on with the request,
    # and what nothing reads would pile up.
    held = state.context.arrays() if draft is not None and state.context else []
    prefix = [] if place.prefix is None else [place.prefix]
    kept = [*taps, *prefix, *state.sampler.kept, *held]
    mx.async_eval([packed.array, judgement.last, *kept])
    return Flight(place, tokens, judgement.last, taps, packed, build_seconds)


def land(engine: Engine, state: State, flight: Flight) -> tuple[Verdict, float]:
    """Wait for a forward and commit what it says; returns the verdict and Python's time for it."""
    verdict = unpack(flight.packed)
    started = perf_counter()
    kept = len(verdict.tokens)
    commit(state.caches, flight.tokens.size, kept)
    state.position += kept
    state.anchor = flight.last
    if flight.place.prefix is not None:
        new = mx.array(list(verdict.tokens), dtype=mx.int32)
        state.prefix = mx.concatenate([flight.place.prefix, new])
        mx.async_eval(state.prefix)
    if engine.drafter and state.context:
        engine.drafter.extend(state.context, flight.taps, flight.tokens, kept)
        state.context.commit(verdict.tokens)
    return verdict, flight.build_seconds + perf_counter() - started
