"""/v1/messages and /v1/messages/count_tokens, Anthropic's dialect."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from ..errors import InputError
from ..numbers import shown
from ..serving.handle import Answer
from ..types import ToolCall
from .asked import Asked
from .events import event
from .fields import Fields
from .generation import Generation
from .openai_input import function_tool, must_call, references, stops, text_of
from .openai_output import new_id, totals
from .running import Running

_CHOICES = ("auto", "any", "tool", "none")
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def read(body: Fields, generation: Generation) -> Asked:
    """The request of a body that asks for an answer."""
    max_tokens = body.whole("max_tokens")
    if max_tokens is None:
        raise body.wrong("max_tokens", "a whole number")
    names = ("temperature", "top_p", "top_k")
    settings = {name: body.get(name) for name in names if body.get(name) is not None}
    return Asked(
        **_conversation(body),
        settings=settings | references(body),
        max_tokens=max_tokens,
        stop=stops(body, "stop_sequences"),
        stream=body.flag("stream"),
    )


def count_tokens(body: Fields, generation: Generation) -> dict[str, Any]:
    """The number of tokens of a conversation, as the target would read it."""
    asked = Asked(**_conversation(body))
    return {"input_tokens": len(generation.encode(asked, asked.prompts[0]))}


def _conversation(body: Fields) -> dict[str, Any]:
    """What both endpoints read: messages, tools and thinking."""
    body.refuse("mcp_servers", "container")
    choice = body.object("tool_choice")
    kind = (choice.choice("type", _CHOICES) if choice else None) or "auto"
    thinking = body.object("thinking")
    messages = _system(body)
    for message in body.objects("messages"):
        messages += _messages(message)
    if not messages or messages[-1]["role"] == "system":
        raise body.wrong("messages", "at least one message")
    tools = [_tool(tool) for tool in body.objects("tools")]
    forced: tuple[str, ...] = ()
    if choice is not None and kind in ("any", "tool"):
        forced = must_call(tools, choice.required_text("name") if kind == "tool" else None)
    return {
        "prompts": [messages],
        "tools": tools if tools and kind != "none" else None,
        "must_call": forced,
        "one_call": choice.flag("disable_parallel_tool_use") if choice else False,
        # Anthropic's targets think only where they are asked to.
        "thinking": thinking is not None and thinking.get("type") != "disabled",
    }


def _system(body: Fields) -> list[dict[str, Any]]:
    text = text_of("system", body.get("system"))
    return [{"role": "system", "content": text}] if text else []


def _tool(tool: Fields) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        raise tool.wrong("type", '"custom"; tools that a server runs are not there')
    return function_tool(tool, "input_schema")


def _messages(message: Fields) -> list[dict[str, Any]]:
    """The messages of one: results of tools are messages of their own, in front of the rest."""
    role = message.choice("role", ("user", "assistant", "system"))
    content = message.get("content")
    if role is None or content is None:
        raise message.wrong("role" if role is None else "content", "a role and content")
    if isinstance(content, str):
        return [{"role": role, "content": text_of(message.place("content"), content)}]
    results: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    texts: list[str] = []
    reasoning: list[str] = []
    for block in message.objects("content"):
        kind = block.get("type")
        if kind == "text":
            texts.append(block.given_text("text"))
        elif kind == "thinking":
            reasoning.append(block.text("thinking") or "")
        elif kind == "tool_use":
            calls.append(_call(block))
        elif kind == "tool_result":
            results.append(_result(block))
        elif kind != "redacted_thinking":
            found = f"a block of type {shown(kind)}"
            raise InputError(block.place("type"), found, "text, tool_use or tool_result; no images")
    rest: dict[str, Any] = {"role": role, "content": "".join(texts)}
    if reasoning:
        rest["reasoning_content"] = "".join(reasoning)
    if calls:
        rest["tool_calls"] = calls
    return results + ([rest] if texts or calls or reasoning or not results else [])


def _call(block: Fields) -> dict[str, Any]:
    given = block.object("input")
    function = {"name": block.required_text("name"), "arguments": given.data if given else {}}
    return {"id": block.text("id") or "", "type": "function", "function": function}


def _result(block: Fields) -> dict[str, Any]:
    text = text_of(block.place("content"), block.get("content"))
    if block.flag("is_error"):
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": block.text("tool_use_id") or "", "content": text}


class MessageWriter:
    """Writes messages; arguments as for `ChatWriter`."""

    def __init__(self, body: Fields, generation: Generation) -> None:
        self._head: dict[str, Any] = {
            "id": new_id("msg_"),
            "type": "message",
            "role": "assistant",
            "model": generation.options.name,
        }

    def whole(self, running: Running, answers: list[Answer]) -> dict[str, Any]:
        """See `Writer`."""
        (answer,) = answers
        content: list[dict[str, Any]] = []
        if answer.reasoning:
            content.append({"type": "thinking", "thinking": answer.reasoning, "signature": ""})
        if answer.content or not answer.tool_calls:
            content.append({"type": "text", "text": answer.content})
        content += [{**_block(call), "input": call.arguments} for call in answer.tool_calls]
        return {**self._head, "content": content, **_end(running), "usage": _usage(running)}

    async def events(self, running: Running) -> AsyncIterator[bytes]:
        """See `Writer`."""
        start = {**self._head, "content": [], "stop_reason": None, "stop_sequence": None}
        usage = {**_usage(running), "output_tokens": 0}
        yield _event("message_start", message={**start, "usage": usage})
        blocks = _Blocks()
        async for _, chunk in running.chunks():
            if chunk.reasoning:
                for part in blocks.add("thinking", "thinking_delta", chunk.reasoning):
                    yield part
            if chunk.content:
                for part in blocks.add("text", "text_delta", chunk.content):
                    yield part
            for call in chunk.tool_calls:
                for part in blocks.call(call):
                    yield part
        if blocks.count == 0:
            for part in blocks.add("text", "text_delta", ""):
                yield part
        for part in blocks.close():
            yield part
        yield _event("message_delta", delta=_end(running), usage=_usage(running))
        yield _event("message_stop")


class _Blocks:
    """The content blocks of a streamed message, of which one is open at a time."""

    def __init__(self) -> None:
        self.count = 0
        self._open = ""

    def add(self, kind: str, delta: str, text: str) -> list[bytes]:
        events = []
        if self._open != kind:
            empty = {"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {})
            events = [*self.close(), self._start(kind, empty)]
        return [*events, self._delta({"type": delta, kind: text})]

    def call(self, call: ToolCall) -> list[bytes]:
        written = json.dumps(call.arguments, ensure_ascii=False)
        return [
            *self.close(),
            self._start("tool_use", {**_block(call), "input": {}}),
            self._delta({"type": "input_json_delta", "partial_json": written}),
            *self.close(),
        ]

    def close(self) -> list[bytes]:
        if not self._open:
            return []
        self._open = ""
        return [_event("content_block_stop", index=self.count - 1)]

    def _start(self, kind: str, block: dict[str, Any]) -> bytes:
        self._open, self.count = kind, self.count + 1
        return _event("content_block_start", index=self.count - 1, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self.count - 1, delta=delta)


def _block(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name}


def _event(name: str, **data: Any) -> bytes:
    return event({"type": name, **data}, name)


def _end(running: Running) -> dict[str, Any]:
    last = running.last.get(0)
    found = last.stop_string if last else None
    reason = "stop_sequence" if found is not None else _REASONS[running.reason(0)]
    return {"stop_reason": reason, "stop_sequence": found}


def _usage(running: Running) -> dict[str, Any]:
    prompt, cached, generated, _, _ = totals(running)
    return {
        "input_tokens": prompt - cached,
        "output_tokens": generated,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
    }
