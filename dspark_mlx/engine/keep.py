"""Begins a request with what is kept of its prompt, and keeps what it leaves behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..reuse.kept import Reading
from .state import Engine, State
from .verify import commit


@contextlib.contextmanager
def keeping(engine: Engine, state: State, tokens: list[int]) -> Iterator[Reading | None]:
    """Fill a new request's state with what is kept; keep its own when it ends.

    A request that ends with an error leaves nothing: its caches may be those of half a round.

    Args:
        engine: the engine.
        state: of a new request.
        tokens: the prompt, to which the caller adds the committed tokens.

    Yields:
        The request's reading, None where nothing is kept.
    """
    if engine.kept is None:
        yield None
        return
    speculation = state.speculation
    drafter, context = (speculation.drafter, speculation.context) if speculation else (None, None)
    with engine.target.turns:
        reading = engine.kept.begin(tokens, state.caches, drafter, context)
    try:
        yield reading
    except GeneratorExit:  # whoever asked for the rounds wants no more of them
        _keep(state, reading, tokens)
        raise
    _keep(state, reading, tokens)


def _keep(state: State, reading: Reading, tokens: list[int]) -> None:
    next_step, state.next_step = state.next_step, None
    if next_step is not None:
        # It has written a row already.
        commit(state, next_step)
    reading.end(tokens, state.anchor_index)
