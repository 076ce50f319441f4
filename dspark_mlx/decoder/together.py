"""Several prompts whose texts are decoded together, whole."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence

from ..engine.active import ActiveRequest, ActiveRequests
from ..engine.state import Engine
from ..progress import ProgressCallback
from ..serving.admission import Reservation
from .prepared import PreparedRequest, WarnedText


def texts_of(
    engine: Engine,
    prepared: Sequence[PreparedRequest],
    memory: Sequence[Reservation],
    at_once: int,
    progress: ProgressCallback | None,
) -> list[str]:
    """The texts of several requests, in their order; see `Decoder.generate_batch`.

    Args:
        engine: target, drafter and scheduler.
        prepared: the requests.
        memory: what each reserves; as many decode at the same time as have theirs.
        at_once: number of requests that decode at the same time at most.
        progress: called with the number of texts that are complete and of all.
    """
    for reserved in memory:
        reserved.check()
    begun = [
        request.begun(reserved.reading(None))
        for request, reserved in zip(prepared, memory, strict=True)
    ]
    texts, waiting = [""] * len(prepared), deque(range(len(prepared)))
    running: dict[ActiveRequest, tuple[int, WarnedText]] = {}
    with contextlib.ExitStack() as ends:
        for reserved in memory:
            ends.callback(reserved.release)
        active = ends.enter_context(contextlib.closing(ActiveRequests(engine)))
        while waiting or running:
            while waiting and len(running) < at_once:
                refused = memory[waiting[0]].take()
                if refused is not None and running:
                    break
                if refused is not None:
                    raise refused
                i = waiting.popleft()
                text = prepared[i].warned_text()
                running[active.add(prepared[i].ids, **begun[i])] = i, text
            for one, round_ in active.step():
                if isinstance(round_, BaseException):
                    raise round_
                i, text = running[one]
                memory[i].count(round_)
                chunks = text.push(round_)
                texts[i] += "".join(chunk.text for chunk in chunks)
                if chunks[-1].finish_reason:
                    active.remove(one)
                    memory[i].release()
                    del running[one]
                    if progress:
                        progress(len(texts) - len(waiting) - len(running), len(texts))
    return texts
