"""The answers to one request while they are made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from ..serving.handle import Answer, RequestHandle, answer_of
from ..types import Chunk, Statistics
from .asked import Asked
from .metrics import Metrics
from .refusals import Refused


class Running:
    """A request that runs: its chunks, with the index of the answer that each belongs to.

    Args:
        asked: the request.
        counts: tokens of each answer's prompt.
        handles: its answers.
        begun: when the request arrived, of `time.monotonic`.
        timeout: seconds after which its answers end where they are.
        metrics: counts its answers.

    Attributes:
        last: the newest chunk of each answer.
        reasoning_tokens: tokens of all answers whose text is reasoning.
    """

    def __init__(
        self,
        asked: Asked,
        counts: Sequence[int],
        handles: Sequence[RequestHandle],
        begun: float,
        timeout: float,
        metrics: Metrics,
    ) -> None:
        self.asked, self.counts = asked, counts
        self.last: dict[int, Chunk] = {}
        self.reasoning_tokens = 0
        self._handles, self._begun, self._metrics = handles, begun, metrics
        self._late = self._gone = False
        self._timer = asyncio.get_running_loop().call_later(timeout, self._end_late)

    def cancel(self) -> None:
        """End the answers, as nobody wants them."""
        self._gone = True
        self._end()

    def close(self) -> None:
        """End what still runs, and count the answers."""
        self._timer.cancel()
        self._end()
        for index in range(len(self._handles)):
            # A client that leaves behind its answer's end has it whole.
            last = self.last.get(index)
            whole = last is not None and last.finish_reason is not None
            reason = "cancelled" if self._gone and not whole else self.reason(index)
            self._metrics.answer(self.statistics(index), reason)

    def reason(self, index: int) -> str:
        """Why an answer ended; "length" where its time was up."""
        last = self.last.get(index)
        return (last.finish_reason if last else None) or "length"

    def statistics(self, index: int) -> Statistics:
        """Totals of an answer."""
        last = self.last.get(index)
        return last.statistics if last else Statistics(prompt_tokens=self.counts[index])

    async def chunks(self) -> AsyncIterator[tuple[int, Chunk]]:
        """Chunks of all answers as they come.

        Raises:
            InputError: what ended an answer.
            Refused: no token came in time, or the server shuts down.
        """
        if len(self._handles) == 1:
            async for chunk in self._one(0):
                yield 0, chunk
            return
        merged: asyncio.Queue[tuple[int, Chunk] | None] = asyncio.Queue(1)

        async def pass_on(index: int) -> None:
            try:
                async for chunk in self._one(index):
                    await merged.put((index, chunk))
            finally:
                await merged.put(None)

        tasks = [asyncio.create_task(pass_on(index)) for index in range(len(self._handles))]
        try:
            ended = 0
            while ended < len(tasks):
                item = await merged.get()
                if item is None:
                    ended += 1
                else:
                    yield item
            for task in tasks:
                await task
        finally:
            for task in tasks:
                task.cancel()

    async def answers(self) -> list[Answer]:
        """All answers, whole."""
        chunks: list[list[Chunk]] = [[] for _ in self._handles]
        async for index, chunk in self.chunks():
            chunks[index].append(chunk)
        made = enumerate(map(answer_of, chunks))
        return [replace(answer, finish_reason=self.reason(index)) for index, answer in made]

    async def _one(self, index: int) -> AsyncIterator[Chunk]:
        handle = self._handles[index]
        count = accepted = 0
        async for chunk in handle:
            count += 1
            accepted += chunk.from_draft
            if not self.last:
                self._metrics.first_token(time.monotonic() - self._begun)
            if self.asked.one_call and chunk.tool_calls:
                calls, cut = chunk.tool_calls[:1], chunk.statistics.cut(count, accepted)
                reason = "tool_calls"
                chunk = replace(chunk, tool_calls=calls, finish_reason=reason, statistics=cut)
            self.last[index] = chunk
            self.reasoning_tokens += bool(chunk.reasoning)
            yield chunk
            if chunk.finish_reason:
                handle.cancel()
                return
        if not self._late:
            raise Refused(503, "the server is shutting down", "shutting_down")
        if index not in self.last:
            raise Refused(503, "no answer began in time", "timeout")

    def _end_late(self) -> None:
        self._late = True
        self._end()

    def _end(self) -> None:
        for handle in self._handles:
            handle.cancel()
