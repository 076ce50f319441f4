"""One request inside the engine thread: its rounds, its text, and where its chunks go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from ..engine.active import ActiveRequest, ActiveRequests
from ..system.handing_on import HandingOn
from ..types import Chunk, Round
from .admission import Reservation
from .buffer import Buffer

Start: TypeAlias = Callable[[ActiveRequests], ActiveRequest]
"""Adds a request to those that decode, in the thread that runs them."""


class Text(Protocol):
    """Makes chunks of a request's rounds, see `engine.stream.TextStream`."""

    def push(self, round_: Round) -> list[Chunk]:
        """The chunks of a round."""
        ...


class Job:
    """A request that waits or runs.

    Args:
        start: see `Start`.
        text: makes chunks of the rounds.
        buffer: takes the chunks.
        memory: what it reserves.

    Attributes:
        memory: the argument.
        request: among those that decode; None before `begin`.
    """

    def __init__(
        self, start: Start, text: Text, buffer: Buffer[Chunk], memory: Reservation
    ) -> None:
        self._start, self._text, self._buffer = start, text, buffer
        self.memory = memory
        self.request: ActiveRequest | None = None

    @property
    def ended(self) -> bool:
        """Whether the last chunk was made, the request failed, or the reader has gone."""
        return self._buffer.ended

    @property
    def paused(self) -> bool:
        """Whether the reader has to read before the next round."""
        return self._buffer.full

    def begin(self, active: ActiveRequests) -> None:
        """Add the request to those that decode, if it is not among them."""
        if self.request is None:
            with ToReaders([self]):
                self.request = self._start(active)

    def deliver(self, round_: Round, active: ActiveRequests) -> None:
        """Hand a round's chunks to the reader."""
        self.memory.count(round_)
        with ToReaders([self]):
            chunks = self._text.push(round_)
            last = bool(chunks) and chunks[-1].finish_reason is not None
            if last:
                # Before its reader knows of the end, who may ask for more at once.
                self._free(active)
            self._buffer.put(chunks, last)

    def fail(self, error: BaseException) -> None:
        """End the request with an error, which its reader gets behind the chunks."""
        self._buffer.end(error)

    def cancel(self) -> None:
        """End the request; its reader gets what was made."""
        self._buffer.end()

    def close(self, active: ActiveRequests) -> None:
        """Free the caches; the reader gets an end, if it did not have one."""
        self.cancel()
        self._free(active)

    def _free(self, active: ActiveRequests) -> None:
        try:
            if self.request is not None:
                active.remove(self.request)
        finally:
            self.memory.release()


class ToReaders(HandingOn):
    """Hands whatever the block raises to the readers of jobs, who raise it again.

    Anything may be raised: by a request's own logits processors, or by a device without memory.
    The thread goes on with the other requests.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        def fail(error: BaseException) -> None:
            for job in jobs:
                job.fail(error)

        super().__init__(fail)
