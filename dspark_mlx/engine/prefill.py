"""The prompt, read in chunks: the first forward of every request."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from ..caches import cache_arrays
from ..progress import ProgressCallback
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
) -> Round:
    """Run the prompt and choose the first token; of all but its last token no logit is computed.

    Args:
        engine: whose target runs.
        state: fresh.
        prompt: token ids.
        chunk_size: tokens of a forward.
        progress: called with the prompt's tokens.
    """
    tokens = mx.array(list(prompt), dtype=mx.int32)
    body = len(prompt) - 1
    for start in range(0, body, chunk_size):
        if progress:
            progress(start, len(prompt))
        with engine.target.turns:
            _read_chunk(engine, state, tokens[start : min(start + chunk_size, body)])
    state.position, state.anchor = body, tokens[body:]
    state.prefix = tokens if state.sampler.needs_prefix else None
    with engine.target.turns:
        verdict = commit(state, start_verify(engine, state))
    refuse_faults(engine, verdict.faults, len(prompt))
    if progress:
        progress(len(prompt), len(prompt))
    seconds = state.timer.seconds
    return Round(verdict.tokens, prefill=True, seconds=seconds, logprobs=verdict.logprobs)


def _read_chunk(engine: Engine, state: State, chunk: mx.array) -> None:
    _, taps = engine.target(chunk, state.caches)
    if state.speculation:
        drafter, context = state.speculation.drafter, state.speculation.context
        drafter.extend(context, taps, chunk)
        drafter.flush(context)
        mx.eval(context.arrays())
    mx.eval(cache_arrays(state.caches))
    mx.clear_cache()
