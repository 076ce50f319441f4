"""What a reader holds of a request: chunks to iterate, a result, and the way to cancel it."""

from __future__ import annotations

import time
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

from ..numbers import check_number
from ..types import Chunk, Statistics, ToolCall
from .buffer import Buffer

CANCELLED = "cancelled"


@dataclass(frozen=True)
class Answer:
    """A whole answer.

    Attributes:
        text: all of its text, reasoning, calls and markers included.
        content: the text that is for the user.
        reasoning: the text that the target thought in.
        tool_calls: functions that the target wants called.
        tokens: its token ids, an end token included.
        finish_reason: "stop", "length", "tool_calls" or "cancelled".
        stop_string: the stop string that ended the text; None where none did.
        statistics: totals of the request.
        chunks: the chunks that it is made of.
    """

    text: str = ""
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tokens: tuple[int, ...] = ()
    finish_reason: str = CANCELLED
    stop_string: str | None = None
    statistics: Statistics = field(default_factory=Statistics)
    chunks: tuple[Chunk, ...] = field(default=(), repr=False)


def answer_of(chunks: Sequence[Chunk]) -> Answer:
    """The answer that chunks make; without a finish reason it was cancelled."""
    last = chunks[-1] if chunks else None
    return Answer(
        text="".join(chunk.text for chunk in chunks),
        content="".join(chunk.content for chunk in chunks),
        reasoning="".join(chunk.reasoning for chunk in chunks),
        tool_calls=tuple(call for chunk in chunks for call in chunk.tool_calls),
        tokens=tuple(chunk.token for chunk in chunks),
        finish_reason=(last.finish_reason if last else None) or CANCELLED,
        stop_string=last.stop_string if last else None,
        statistics=last.statistics if last else Statistics(),
        chunks=tuple(chunks),
    )


def check_timeout(timeout: object) -> None:
    """Refuse a timeout that is no number of seconds.

    Raises:
        InputError: it is no number, or below 0.
    """
    check_number("timeout", timeout, lambda seconds: seconds >= 0, "0 seconds or more")


class RequestHandle:
    """A request that was submitted: an iterator of chunks for threads and for asyncio.

    `for chunk in handle` waits in the thread, `async for chunk in handle` lets the event loop run.
    One reader reads it, from any thread. A handle that is dropped unread cancels its request.

    Args:
        buffer: where the request's chunks come from.
    """

    def __init__(self, buffer: Buffer[Chunk]) -> None:
        self._buffer = buffer
        self._chunks: list[Chunk] = []
        # What a finalizer holds stays, and the buffer's error has this handle in its traceback.
        weakref.finalize(self, _abandon, weakref.ref(buffer)).atexit = False

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        chunk = self._buffer.take()
        if chunk is None:
            raise StopIteration
        self._chunks.append(chunk)
        return chunk

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        chunk = await self._buffer.take_async()
        if chunk is None:
            raise StopAsyncIteration
        self._chunks.append(chunk)
        return chunk

    def __enter__(self) -> RequestHandle:
        return self

    def __exit__(self, *error: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """End the request before its next round; chunks that were made can still be read.

        A request that has ended stays as it is.
        """
        self._buffer.end()
        self._buffer.abandon()

    def result(self, timeout: float | None = None) -> Answer:
        """The whole answer, what was iterated before included.

        Args:
            timeout: seconds to wait at most; None for no limit.

        Raises:
            InputError: the timeout is no number of seconds.
            TimeoutError: the answer is not whole in time; the request goes on.
            BaseException: what ended the request.
        """
        if timeout is not None:
            check_timeout(timeout)
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if end is None else max(end - time.monotonic(), 0.0)
            try:
                chunk = self._buffer.take(left)
            except TimeoutError as error:
                raise TimeoutError(f"no whole answer within {timeout} seconds") from error
            if chunk is None:
                return self._answer()
            self._chunks.append(chunk)

    async def answer(self) -> Answer:
        """As `result`, for asyncio."""
        async for _ in self:
            pass
        return self._answer()

    def _answer(self) -> Answer:
        """The answer, now that it has ended.

        Raises:
            BaseException: what ended the request, also where it was raised before.
        """
        if self._buffer.failure is not None:
            raise self._buffer.failure
        return answer_of(self._chunks)


def _abandon(held: weakref.ref[Buffer[Chunk]]) -> None:
    buffer = held()
    if buffer is not None:
        buffer.abandon()
