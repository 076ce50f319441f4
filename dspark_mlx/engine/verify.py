"""Verify and commit: the target's forward over a block, and the update of a request's state."""

from __future__ import annotations

from collections.abc import Collection

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
        engine: the engine.
        state: the request's state, whose caches the forward writes.
        draft: the block; None for a plain step.
        scheduled: number of its tokens to verify.
        after: the plain step before this one, if it is not committed yet; else None.
    """
    position, anchor = state.position, state.anchor
    if after is not None:
        anchor, position = after.last, _position_after(after)
    tokens = anchor if draft is None else _rows(engine, position, anchor, draft, scheduled)
    logits, taps, rollback = engine.target.verify(tokens, state.caches)
    with state.timer.host():
        judgement = state.sampler.judge(logits[: scheduled + 1], position, draft)
        packed = pack(judgement, draft, scheduled)
    # Every array that outlives the round is evaluated with it: another thread may run the next
    # round, and the graphs of arrays that nothing reads would grow.
    context = state.speculation.context.arrays() if draft and state.speculation else []
    prefix = [] if position.prefix is None else [position.prefix]
    # The states of a drafted forward are evaluated when it is known how many rows of it stay.
    states = rollback.states() if draft is None else []
    kept = [*taps, *prefix, *state.sampler.arrays, *context, *states]
    mx.async_eval([packed.array, judgement.last, *kept])
    return VerifyForward(position, tokens, judgement.last, taps, packed, rollback)


def commit(state: State, forward: VerifyForward, stop: Collection[int] = frozenset()) -> Verdict:
    """Wait for a forward and make the accepted tokens part of the request.

    The caches are rolled back to the accepted rows, and the drafter's context is extended by them.
    Rows behind a token of `stop` are left out, since what is kept of the request ends there.
    """
    verdict = unpack(forward.packed)
    with state.timer.host():
        ends = (i for i, token in enumerate(verdict.tokens, 1) if token in stop)
        kept = next(ends, len(verdict.tokens))
        with state.timer.rollback():
            forward.rollback.keep(kept)
        state.anchor_index += kept
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


def _position_after(step: VerifyForward) -> Position:
    """Position of the first row of the forward after a plain step."""
    before = step.position.prefix
    prefix = None if before is None else mx.concatenate([before, step.last])
    return Position(step.position.index + 1, prefix)


def _rows(
    engine: Engine, position: Position, anchor: mx.array, draft: Draft, scheduled: int
) -> mx.array:
    """Tokens of the rows to run, padding included, int32 `[rows]`."""
    rows = engine.rows(scheduled + 1, position.index)
    # Padding rows are computed and then ignored, so any tokens serve.
    block = draft.tokens[: rows - 1]
    padding = [anchor] * (rows - 1 - block.size)
    return mx.concatenate([anchor, block, *padding]) if rows > 1 else anchor
