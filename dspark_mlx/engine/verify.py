"""Verify and commit: start the target's forward over a block, wait for it, keep what it accepts."""

from __future__ import annotations

import mlx.core as mx

from ..sampling import Position
from ..sampling.packing import pack, unpack
from ..types import Draft, Verdict
from .state import Engine, State, VerifyForward


def start_verify(
    engine: Engine,
    state: State,
    draft: Draft | None = None,
    scheduled: int = 0,
    after: VerifyForward | None = None,
) -> VerifyForward:
    """Start the verify forward over [anchor, x_1..x_scheduled], padded where that is cheaper.

    Args:
        engine: whose target runs.
        state: whose caches it writes.
        draft: the block; None for a plain step.
        scheduled: its tokens to verify.
        after: a plain step that is not committed yet, which this one follows.
    """
    position, anchor = state.place, state.anchor
    if after is not None:
        anchor, position = after.last, _following(after)
    tokens = anchor if draft is None else _rows(engine, position, anchor, draft, scheduled)
    logits, taps, rollback = engine.target.verify(tokens, state.caches)
    with state.timer.host():
        judgement = state.sampler.judge(logits[: scheduled + 1], position, draft)
        packed = pack(judgement, draft, scheduled)
    # All that outlives the round is evaluated with it: another thread may go on with the request,
    # and what nothing reads would pile up.
    held = state.speculation.context.arrays() if draft and state.speculation else []
    prefix = [] if position.prefix is None else [position.prefix]
    # The states of a drafted forward are evaluated when it is known how many rows of it stay.
    held += rollback.states() if draft is None else []
    mx.async_eval([packed.array, judgement.last, *taps, *prefix, *state.sampler.kept, *held])
    return VerifyForward(position, tokens, judgement.last, taps, packed, rollback)


def commit(state: State, forward: VerifyForward) -> Verdict:
    """Wait for a forward, roll the caches back to what it accepts, and extend the context by it."""
    verdict = unpack(forward.packed)
    with state.timer.host():
        kept = len(verdict.tokens)
        forward.rollback.keep(kept)
        state.position += kept
        state.anchor = forward.last
        if forward.position.prefix is not None:
            new = mx.array(list(verdict.tokens), dtype=mx.int32)
            state.prefix = mx.concatenate([forward.position.prefix, new])
            mx.async_eval(state.prefix)
        if state.speculation:
            drafter, context = state.speculation.drafter, state.speculation.context
            drafter.extend(context, forward.taps, forward.tokens, kept)
            context.commit(verdict.tokens)
    return verdict


def _following(step: VerifyForward) -> Position:
    """Where the forward behind a plain step stands."""
    before = step.position.prefix
    prefix = None if before is None else mx.concatenate([before, step.last])
    return Position(step.position.position + 1, prefix)


def _rows(
    engine: Engine, position: Position, anchor: mx.array, draft: Draft, scheduled: int
) -> mx.array:
    """The rows to run, int32 `[rows]`."""
    rows = engine.rows(scheduled + 1, position.position)
    # What pads is verified too and then ignored: nothing of it may be committed.
    block = draft.tokens[: rows - 1]
    padding = [anchor] * (rows - 1 - block.size)
    return mx.concatenate([anchor, block, *padding]) if rows > 1 else anchor
