"""One request inside the engine thread: its rounds, its text, and where its chunks go."""

from __future__ import annotations

from collections.abc import Callable, Generator
from types import TracebackType
from typing import TypeAlias

from ..engine.stream import TextStream
from ..progress import ProgressCallback
from ..types import Chunk, Round
from .buffer import Buffer

Start: TypeAlias = Callable[[ProgressCallback], Generator[Round, None, None]]
"""Makes a request's rounds in the thread that runs them; the callback is called while the prompt is
read."""


class Cancelled(BaseException):
    """Ends a prefill whose reader has gone.

    No `Exception`, as asyncio's: code between here and there must not take it for an error.
    """


class Job:
    """A request that waits or runs.

    A loop that steps many requests at once calls `deliver` with each request's round and `fail`
    with its error; `TakingTurns` calls `advance`, which runs the request's own loop.

    Args:
        start: see `Start`.
        text: makes chunks of the rounds.
        buffer: takes the chunks.
    """

    def __init__(self, start: Start, text: TextStream, buffer: Buffer[Chunk]) -> None:
        self._start, self._text, self._buffer = start, text, buffer
        self._rounds: Generator[Round, None, None] | None = None

    @property
    def ended(self) -> bool:
        """Whether the last chunk was made, the request failed, or the reader has gone."""
        return self._buffer.ended

    @property
    def paused(self) -> bool:
        """Whether the reader has to read before the next round."""
        return self._buffer.full

    def advance(self) -> None:
        """Run one round; what it raises goes to the reader, and to nobody else."""
        with _ToReader(self):
            if self._rounds is None:
                self._rounds = self._start(self._still_wanted)
            self.deliver(next(self._rounds))

    def deliver(self, round_: Round) -> None:
        """Hand a round's chunks to the reader."""
        chunks = self._text.push(round_)
        self._buffer.put(chunks, last=bool(chunks) and chunks[-1].finish_reason is not None)

    def fail(self, error: BaseException) -> None:
        """End the request with an error, which its reader gets behind the chunks."""
        self._buffer.end(error)

    def cancel(self) -> None:
        """End the request; its reader gets what was made."""
        self._buffer.end()

    def close(self) -> None:
        """Free the caches; the reader gets an end, if it did not have one."""
        self.cancel()
        rounds, self._rounds = self._rounds, None
        if rounds is not None:
            rounds.close()

    def _still_wanted(self, done: int, total: int) -> None:
        if self.ended:
            raise Cancelled


class _ToReader:
    """Hands whatever the block raises to the reader of a job.

    A request may raise anything: its logits processors are the caller's code. The reader raises it
    again; the thread goes on with the other requests.
    """

    def __init__(self, job: Job) -> None:
        self._job = job

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is not None:
            self._job.fail(error)
        return True
