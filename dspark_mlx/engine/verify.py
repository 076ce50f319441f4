"""Verify and commit: the target's forward over blocks, and the update of the requests' states."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import mlx.core as mx

from ..sampling import Position
from ..sampling.packing import pack, unpack
from ..types import Draft, Verdict
from .group import Group
from .state import Judged, State, VerifyForward


def start_verify(
    group: Group,
    drafts: Sequence[Draft | None] | None = None,
    scheduled: Sequence[int] | None = None,
    after: VerifyForward | None = None,
) -> VerifyForward:
    """Start the verify forward over [anchor, x_1..x_scheduled] of each request.

    All are padded to one width; that of a single request is the cheapest that is wide enough.

    Args:
        group: the requests, whose caches the forward writes.
        drafts: their blocks, None for a request that does not draft; None for a plain step.
        scheduled: number of tokens to verify, of each block.
        after: the plain step before this one, if it is not committed yet; else None.
    """
    states = group.states
    blocks, lengths = drafts or [None] * len(states), scheduled or [0] * len(states)
    begins = [_begin(state, after, i) for i, state in enumerate(states)]
    width = max(lengths) + 1
    # A plain step is never padded: the next one may start before it is cut back.
    if drafts and len(states) == 1:
        start = begins[0][0].index
        padded = group.engine.rows(width, start)
        width = max(width, group.engine.target.rows_alike(start, padded))
    rows = [_rows(anchor, block, width) for (_, anchor), block in zip(begins, blocks, strict=True)]
    logits, tokens, taps, rollback = group.verify(rows)
    judged: list[Judged | None] = [None] * len(states)
    with group.timer.host():
        for i, (state, (position, _)) in enumerate(zip(states, begins, strict=True)):
            if state.error is None:
                with group.own_code(state):
                    judgement = state.sampler.judge(
                        logits[i][: lengths[i] + 1], position, blocks[i]
                    )
                    packed = pack(judgement, blocks[i], lengths[i])
                    judged[i] = Judged(position, judgement.last, packed)
    # Every array that outlives the round is evaluated with it: another thread may run the next
    # round, and the graphs of arrays that nothing reads would grow.
    kept = [*taps, *(array for state in states for array in state.sampler.arrays)]
    for part in judged:
        if part is not None:
            prefix = part.position.prefix
            kept += [part.packed.array, part.last, *([] if prefix is None else [prefix])]
    # The states of a drafted forward are evaluated when it is known how many rows of it stay.
    kept += group.context_arrays() if drafts else rollback.states()
    mx.async_eval(kept)
    return VerifyForward(tokens, taps, rollback, tuple(judged))


def commit(group: Group, forward: VerifyForward) -> list[Verdict | None]:
    """Wait for a forward and make the accepted tokens part of the requests.

    The caches are rolled back to the accepted rows, and the drafter's contexts are extended by
    them. Rows behind a request's stop token are left out, since what is kept of it ends there;
    where nothing is kept, what every request ends with is not rolled back.

    Returns:
        Each request's verdict; None where its own code failed.
    """
    if len(forward.judged) > 1:
        mx.eval([part.packed.array for part in forward.judged if part])
    verdicts = [unpack(part.packed) if part else None for part in forward.judged]
    with group.timer.host():
        kept = [
            _rows_kept(verdict, state.stop) if verdict else 1
            for state, verdict in zip(group.states, verdicts, strict=True)
        ]
        if group.engine.kept is not None or not _all_end(group.states, verdicts, kept):
            group.keep(forward, kept)
        parts = zip(group.states, forward.judged, verdicts, kept, strict=True)
        for state, part, verdict, rows in parts:
            if part and verdict:
                _advance(state, part, verdict, rows)
    return verdicts


def _rows_kept(verdict: Verdict, stop: Collection[int]) -> int:
    ends = (i for i, token in enumerate(verdict.tokens, 1) if token in stop)
    return next(ends, len(verdict.tokens))


def _all_end(
    states: Sequence[State], verdicts: Sequence[Verdict | None], kept: Sequence[int]
) -> bool:
    parts = zip(states, verdicts, kept, strict=True)
    return all(v and (v.tokens[n - 1] in s.stop or n == s.remaining) for s, v, n in parts)


def _advance(state: State, part: Judged, verdict: Verdict, rows: int) -> None:
    state.anchor_index += rows
    state.anchor = part.last
    if part.position.prefix is not None:
        new = mx.array(list(verdict.tokens), dtype=mx.int32)
        state.prefix = mx.concatenate([part.position.prefix, new])
        mx.async_eval(state.prefix)
    if state.speculation:
        state.speculation.context.commit(verdict.tokens)


def _begin(state: State, after: VerifyForward | None, i: int) -> tuple[Position, mx.array]:
    """Position and token of the forward's first row, the anchor."""
    step = after.judged[i] if after else None
    if step is None:
        return state.position, state.anchor
    before = step.position.prefix
    prefix = None if before is None else mx.concatenate([before, step.last])
    return Position(step.position.index + 1, prefix), step.last


def _rows(anchor: mx.array, draft: Draft | None, width: int) -> mx.array:
    """Tokens of a request's rows, padding included, int32 `[width]`."""
    if width == 1:
        return anchor
    # Padding rows are computed and then ignored, so any tokens serve.
    block = [] if draft is None else [draft.tokens[: width - 1]]
    padding = [anchor] * (width - 1 - sum(part.size for part in block))
    return mx.concatenate([anchor, *block, *padding])
