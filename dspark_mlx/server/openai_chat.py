"""/v1/chat/completions."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from ..errors import InputError
from ..serving.handle import Answer
from ..system.strict_json import parse_json
from ..types import Chunk, ToolCall
from .asked import Asked
from .events import event
from .fields import Fields
from .generation import Generation
from .openai_input import (
    function_tool,
    sampling,
    schema_of,
    stops,
    template_variables,
    text_of,
    thinking_of,
    tool_choice,
)
from .openai_output import CompletionBase, chat_logprobs, usage
from .running import Running

_ROLES = ("system", "developer", "user", "assistant", "tool")
_MOST_LOGPROBS = 20


def read(body: Fields, generation: Generation) -> Asked:
    """The request of a body."""
    body.refuse("functions", "function_call", "audio", "web_search_options")
    settings = sampling(body)
    if body.flag("logprobs"):
        settings["logprobs"] = body.whole("top_logprobs", 0, _MOST_LOGPROBS) or 0
    variables = template_variables(body)
    if effort := body.text("reasoning_effort"):
        variables.setdefault("reasoning_effort", effort)
    return Asked(
        prompts=[_messages(body)],
        settings=settings,
        max_tokens=body.whole("max_completion_tokens") or body.whole("max_tokens"),
        stop=stops(body),
        choices=body.whole("n", 1, generation.options.max_choices) or 1,
        **tool_choice(body, _tools(body)),
        one_call=not body.flag("parallel_tool_calls", True),
        thinking=thinking_of(effort),
        template_kwargs=variables,
        schema=schema_of(body),
        stream=body.flag("stream"),
    )


def _tools(body: Fields) -> list[dict[str, Any]]:
    found = []
    for tool in body.objects("tools"):
        if tool.get("type") != "function":
            raise tool.wrong("type", '"function"; tools that a server runs are not there')
        if (function := tool.object("function")) is None:
            raise tool.wrong("function", "the function, with its name and parameters")
        found.append(function_tool(function))
    return found


def _messages(body: Fields) -> list[dict[str, Any]]:
    """The messages as chat templates take them."""
    found = [_message(each) for each in body.objects("messages")]
    if not found:
        raise body.wrong("messages", "at least one message")
    return found


def _message(fields: Fields) -> dict[str, Any]:
    role = fields.choice("role", _ROLES)
    if role is None:
        raise fields.wrong("role", " or ".join(_ROLES))
    fields.refuse("function_call", "audio")
    # A message of calls has none, and agents send a tool's empty result so.
    if fields.get("content") is None and role not in ("assistant", "tool"):
        raise fields.wrong("content", "text, or a list of parts")
    message: dict[str, Any] = {
        "role": "system" if role == "developer" else role,
        "content": text_of(fields.place("content"), fields.get("content")),
    }
    for name in ("name", "tool_call_id", "reasoning_content"):
        if (value := fields.text(name)) is not None:
            message[name] = value
    if calls := [_call(each) for each in fields.objects("tool_calls")]:
        message["tool_calls"] = calls
    return message


def _call(fields: Fields) -> dict[str, Any]:
    function = fields.object("function")
    if function is None:
        raise fields.wrong("function", "the function that was called")
    name = function.required_text("name")
    return template_call(fields.text("id"), name, function, "arguments")


def template_call(id_: str | None, name: str, fields: Fields, key: str) -> dict[str, Any]:
    """A call as chat templates take it: with arguments as an object, from a field of JSON."""
    place = fields.place(key)
    arguments = parse_json(fields.text(key) or "{}", place)
    if not isinstance(arguments, dict):
        raise InputError(place, "JSON that is no object", "arguments by name")
    return {"id": id_ or "", "type": "function", "function": {"name": name, "arguments": arguments}}


class ChatWriter(CompletionBase):
    """Writes chat completions; arguments as for `CompletionBase`."""

    def __init__(self, body: Fields, generation: Generation) -> None:
        super().__init__(body, generation, "chatcmpl-")

    def whole(self, running: Running, answers: list[Answer]) -> dict[str, Any]:
        """See `Writer`."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        body = {**self._head, "object": "chat.completion", "choices": choices}
        return body | {"usage": usage(running)}

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.content or None}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.tool_calls:
            message["tool_calls"] = [_written(call) for call in answer.tool_calls]
        elif not answer.content:
            message["content"] = ""
        return {
            "index": index,
            "message": message,
            "finish_reason": answer.finish_reason,
            "logprobs": self._logprobs(answer.chunks),
        }

    def _logprobs(self, chunks: tuple[Chunk, ...]) -> dict[str, Any] | None:
        shown = self._reported(chunks)
        return None if shown is None else chat_logprobs(self._tokenizer, shown)

    async def events(self, running: Running) -> AsyncIterator[bytes]:
        """See `Writer`."""
        calls: dict[int, int] = {}
        for index in range(len(running.counts)):
            yield self._event(index, {"role": "assistant", "content": ""})
        async for index, chunk in running.chunks():
            delta: dict[str, Any] = {}
            if chunk.content:
                delta["content"] = chunk.content
            if chunk.reasoning:
                delta["reasoning_content"] = chunk.reasoning
            if chunk.tool_calls:
                first = calls.get(index, 0)
                calls[index] = first + len(chunk.tool_calls)
                numbered = enumerate(chunk.tool_calls, first)
                delta["tool_calls"] = [{"index": i, **_written(call)} for i, call in numbered]
            logprobs = self._logprobs((chunk,))
            if delta or logprobs:
                yield self._event(index, delta, logprobs)
        for index in range(len(running.counts)):
            yield self._event(index, {}, reason=running.reason(index))
        if self._with_usage:
            yield event(self._chunk([]) | {"usage": usage(running)})
        yield event("[DONE]")

    def _event(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        reason: str | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return event(self._chunk([choice]))

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": choices}


def _written(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"id": call.id, "type": "function", "function": function}
