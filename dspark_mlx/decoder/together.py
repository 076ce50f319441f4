"""Several prompts whose texts are decoded together, whole."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence

from ..engine.active import ActiveRequest, ActiveRequests
from ..engine.state import Engine
from ..progress import ProgressCallback
from .prepared import PreparedRequest, WarnedText


def texts_of(
    engine: Engine,
    prepared: Sequence[PreparedRequest],
    at_once: int,
    progress: ProgressCallback | None,
) -> list[str]:
    """The texts of several requests, in their order; see `Decoder.generate_batch`."""
    begun = [request.begun() for request in prepared]
    texts, waiting = [""] * len(prepared), deque(range(len(prepared)))
    running: dict[ActiveRequest, tuple[int, WarnedText]] = {}
    with contextlib.closing(ActiveRequests(engine)) as active:
        while waiting or running:
            while waiting and len(running) < at_once:
                i = waiting.popleft()
                text = prepared[i].warned_text()
                running[active.add(prepared[i].ids, **begun[i])] = i, text
            for one, round_ in active.step():
                if isinstance(round_, Exception):
                    raise round_
                i, text = running[one]
                chunks = text.push(round_)
                texts[i] += "".join(chunk.text for chunk in chunks)
                if chunks[-1].finish_reason:
                    active.remove(one)
                    del running[one]
                    if progress:
                        progress(len(texts) - len(waiting) - len(running), len(texts))
    return texts
