"""Begins a request with what is kept of its prompt, and keeps what it leaves behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..reuse.kept import Reading
from .group import Solo
from .verify import commit


@contextlib.contextmanager
def keeping(group: Solo, keeps: bool) -> Iterator[Reading | None]:
    """Fill a new request's state with what is kept; keep its own when it ends.

    A request that ends with an error leaves nothing: its caches may be those of half a round. One
    that ends while its prompt is read leaves nothing either.

    Args:
        group: a new request alone.
        keeps: False for a request that is more than its tokens.

    Yields:
        The request's reading, None where nothing is kept.
    """
    engine, (state,) = group.engine, group.states
    if engine.kept is None or not keeps:
        yield None
        return
    speculation = state.speculation
    drafter, context = (speculation.drafter, speculation.context) if speculation else (None, None)
    target = engine.target
    with target.turns:
        reading = engine.kept.begin(state.tokens, state.caches, drafter, context, target.model)
    try:
        yield reading
    except GeneratorExit:  # whoever asked for the rounds wants no more of them
        _keep(group, reading)
        raise
    if state.error is None and state.anchor_index:
        _keep(group, reading)


def _keep(group: Solo, reading: Reading) -> None:
    next_step, group.next_step = group.next_step, None
    if next_step is not None:
        # It has written a row already.
        commit(group, next_step)
    (state,) = group.states
    reading.end(state.tokens, state.anchor_index, state.caches)
