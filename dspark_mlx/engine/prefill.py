"""Runs the prompt in chunks and chooses a request's first token."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from ..caches import bytes_per_token, cache_arrays
from ..progress import ProgressCallback
from ..reuse.kept import Reading
from ..types import Round
from .faults import refuse_faults
from .state import Engine, State
from .verify import commit, start_verify


def prefill(
    engine: Engine,
    state: State,
    prompt: Sequence[int],
    chunk_size: int,
    progress: ProgressCallback | None,
    kept: Reading | None = None,
) -> Round:
    """Run the prompt and choose the first token; only the last row's logits are computed.

    Args:
        engine: the engine.
        state: the state of a new request.
        prompt: token ids, at least one.
        chunk_size: prompt tokens per forward.
        progress: called with prompt tokens done and prompt tokens in all; None for no calls.
        kept: what is kept of the prompt, which the state holds already; None for nothing.

    Returns:
        The round of the first token.
    """
    tokens = mx.array(list(prompt), dtype=mx.int32)
    last = len(prompt) - 1
    done = read_before = kept.length if kept else 0
    while done < last:
        if progress:
            progress(done, len(prompt))
        end = min(done + chunk_size, last)
        if kept:
            end = kept.next_stop(done, end)
        with engine.target.turns:
            _read_chunk(engine, state, tokens[done:end])
            if kept:
                kept.note(end, last=end == last)
        done = end
    state.anchor_index, state.anchor = last, tokens[last:]
    state.prefix = tokens if state.sampler.needs_prefix else None
    with engine.target.turns:
        verdict = commit(state, start_verify(engine, state))
    refuse_faults(engine, verdict.faults, len(prompt))
    if progress:
        progress(len(prompt), len(prompt))
    return Round(
        verdict.tokens,
        prefill=True,
        seconds=state.timer.seconds,
        logprobs=verdict.logprobs,
        cached_tokens=read_before,
        target_bytes_per_token=bytes_per_token(state.caches),
        drafter_bytes_per_token=(
            state.speculation.context.bytes_per_token if state.speculation else 0
        ),
    )


def _read_chunk(engine: Engine, state: State, chunk: mx.array) -> None:
    _, taps = engine.target(chunk, state.caches)
    if state.speculation:
        drafter, context = state.speculation.drafter, state.speculation.context
        drafter.extend(context, taps, chunk)
        drafter.flush(context)
        mx.eval(context.arrays())
    mx.eval(cache_arrays(state.caches))
    mx.clear_cache()
