"""Runs the requests of all dialects on the decoder, within the server's limits."""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..decoder import Decoder, Prompt
from ..errors import BusyError, ClosedError, InputError
from ..sampling.json_schema import JsonSchema
from ..serving.handle import Answer, RequestHandle, answer_of
from ..types import Chunk, Statistics
from .metrics import Metrics
from .options import Options
from .refusals import Refused

_SCHEMAS = 32


@dataclass(frozen=True)
class Asked:
    """A request of any dialect.

    Attributes:
        prompts: its prompts; only completions have several.
        settings: the decoder's settings that it names.
        max_tokens: longest answer; None for the server's default.
        stop: strings that end an answer.
        choices: number of answers to each prompt.
        tools: functions that may be called, in OpenAI's form; None for none.
        one_call: whether an answer ends with its first call.
        thinking: whether the target thinks first; None leaves that to the template.
        template_kwargs: variables of the chat template.
        schema: JSON schema that answers follow.
        raw: whether an answer is all text, without reasoning and calls.
        stream: whether the answer is sent while it is made.
    """

    prompts: Sequence[Prompt]
    settings: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    choices: int = 1
    tools: Sequence[Mapping[str, Any]] | None = None
    one_call: bool = False
    thinking: bool | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    schema: Mapping[str, Any] | None = None
    raw: bool = False
    stream: bool = False


class Generation:
    """Starts requests on one decoder.

    Args:
        decoder: the decoder.
        options: limits and defaults.
    """

    def __init__(self, decoder: Decoder, options: Options) -> None:
        self.decoder, self.options = decoder, options
        self.metrics = Metrics(decoder)
        self._schemas: OrderedDict[str, JsonSchema] = OrderedDict()

    async def start(self, asked: Asked) -> Running:
        """Queue a request; encoding and grammars are made in a thread beside the event loop.

        Raises:
            InputError, BusyError, ClosedError: see `Decoder.submit`.
            Refused: the prompt leaves no room for an answer.
        """
        begun = time.monotonic()
        counts, handles = await asyncio.to_thread(self._submit, asked)
        return Running(self, asked, counts, handles, begun)

    def encode(self, asked: Asked, prompt: Prompt) -> list[int]:
        """Token ids of a prompt."""
        # A grammar begins with the answer's first token, where a target would think.
        thinking = asked.thinking if asked.schema is None else False
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return self.decoder.encode(prompt)
        variables = {**self.options.template_kwargs, **asked.template_kwargs}
        return self.decoder.encode(
            prompt, thinking=thinking, tools=asked.tools, chat_template_kwargs=variables
        )

    def _submit(self, asked: Asked) -> tuple[list[int], list[RequestHandle]]:
        settings = {**self.options.settings, **asked.settings}
        if asked.schema is not None:
            settings["logits_processors"] = (self._grammar(asked.schema),)
        samples = range(asked.choices)
        counts: list[int] = []
        handles: list[RequestHandle] = []
        try:
            for prompt in asked.prompts:
                ids = self.encode(asked, prompt)
                limit = self._longest(asked, len(ids))
                for sample in samples:
                    handle = self.decoder.submit(
                        ids,
                        limit,
                        stop=asked.stop,
                        tools=asked.tools,
                        parts=not asked.raw and asked.schema is None,
                        **{**settings, "sample": sample if settings.get("temperature") else 0},
                    )
                    handles.append(handle)
                    counts.append(len(ids))
        except (InputError, BusyError, ClosedError, Refused):
            for handle in handles:
                handle.cancel()
            raise
        return counts, handles

    def _longest(self, asked: Asked, prompt_tokens: int) -> int:
        limit = min(asked.max_tokens or self.options.max_tokens, self.options.max_tokens_limit)
        positions = self.decoder.max_length
        if positions is None:
            return limit
        if prompt_tokens >= positions:
            message = f"prompt is too long: {prompt_tokens} tokens > {positions - 1} maximum"
            raise Refused(400, message, "context_length_exceeded", "messages")
        return min(limit, positions - prompt_tokens)

    def _grammar(self, schema: Mapping[str, Any]) -> JsonSchema:
        """The processor of a schema; the last ones are kept, since agents send them every turn."""
        key = json.dumps(schema)
        made = self._schemas.pop(key, None) or self.decoder.json_schema(schema)
        self._schemas[key] = made
        if len(self._schemas) > _SCHEMAS:
            self._schemas.popitem(last=False)
        return made


class Running:
    """A request that runs: its chunks, with the index of the answer that each belongs to.

    Args:
        generation: where it runs.
        asked: the request.
        counts: tokens of each answer's prompt.
        handles: its answers.
        begun: when the request arrived, of `time.monotonic`.

    Attributes:
        last: the newest chunk of each answer.
        reasoning_tokens: tokens of all answers whose text is reasoning.
    """

    def __init__(
        self,
        generation: Generation,
        asked: Asked,
        counts: Sequence[int],
        handles: Sequence[RequestHandle],
        begun: float,
    ) -> None:
        self.generation, self.asked, self.counts = generation, asked, counts
        self.last: dict[int, Chunk] = {}
        self.reasoning_tokens = 0
        self._handles, self._begun = handles, begun
        self._late = self._gone = False
        self._timer = asyncio.get_running_loop().call_later(
            generation.options.timeout, self._end_late
        )

    def cancel(self) -> None:
        """End the answers, as nobody wants them."""
        self._gone = True
        self._end()

    def close(self) -> None:
        """End what still runs, and count the answers."""
        self._timer.cancel()
        self._end()
        for index in range(len(self._handles)):
            reason = "cancelled" if self._gone else self.reason(index)
            self.generation.metrics.answer(self.statistics(index), reason)

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
        async for chunk in handle:
            if not self.last:
                self.generation.metrics.first_token(time.monotonic() - self._begun)
            if self.asked.one_call and chunk.tool_calls:
                calls = chunk.tool_calls[:1]
                chunk = replace(chunk, tool_calls=calls, finish_reason="tool_calls")
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
