"""/v1/responses: what it writes, whole and as events."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

from ..serving.handle import Answer
from ..text.messages import plain_data
from ..types import ToolCall
from .events import event
from .fields import Fields
from .generation import Generation
from .openai_output import new_id, totals
from .running import Running


class ResponseWriter:
    """Writes responses; arguments as for `ChatWriter`."""

    def __init__(self, body: Fields, generation: Generation) -> None:
        metadata = body.object("metadata")
        # What is given back must be JSON again.
        echoed = plain_data("metadata", metadata.data if metadata else {})
        self._head: dict[str, Any] = {
            "id": new_id("resp_"),
            "object": "response",
            "created_at": int(time.time()),
            "model": generation.options.name,
            "error": None,
            "instructions": body.get("instructions"),
            "metadata": echoed,
            "parallel_tool_calls": body.flag("parallel_tool_calls", True),
            "previous_response_id": None,
            "store": False,
            "temperature": None,
            "tool_choice": body.get("tool_choice") or "auto",
            "tools": [tool.data for tool in body.objects("tools")],
            "top_p": None,
        }

    def whole(self, running: Running, answers: list[Answer]) -> dict[str, Any]:
        """See `Writer`."""
        (answer,) = answers
        output = []
        if answer.reasoning:
            output.append(_reasoning(new_id("rs_"), answer.reasoning))
        if answer.content or not answer.tool_calls:
            output.append(_message(new_id("msg_"), answer.content))
        output += [_call(new_id("fc_"), call) for call in answer.tool_calls]
        return self._ended(running, output)

    async def events(self, running: Running) -> AsyncIterator[bytes]:
        """See `Writer`."""
        items = _Items()
        begun = self._body("in_progress", [])
        yield items.event("response.created", response=begun)
        yield items.event("response.in_progress", response=begun)
        async for _, chunk in running.chunks():
            if chunk.reasoning:
                for part in items.add("reasoning", chunk.reasoning):
                    yield part
            if chunk.content:
                for part in items.add("message", chunk.content):
                    yield part
            for call in chunk.tool_calls:
                for part in items.call(call):
                    yield part
        if not items.output and not items.is_open:
            for part in items.add("message", ""):
                yield part
        for part in items.close():
            yield part
        ended = self._ended(running, items.output)
        yield items.event(f"response.{ended['status']}", response=ended)

    def _ended(self, running: Running, output: list[dict[str, Any]]) -> dict[str, Any]:
        cut = running.reason(0) == "length"
        prompt, cached, generated, _, _ = totals(running)
        return self._body("incomplete" if cut else "completed", output) | {
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": {
                "input_tokens": prompt,
                "input_tokens_details": {"cached_tokens": cached},
                "output_tokens": generated,
                "output_tokens_details": {"reasoning_tokens": running.reasoning_tokens},
                "total_tokens": prompt + generated,
            },
        }

    def _body(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            **self._head,
            "status": status,
            "output": output,
            "incomplete_details": None,
            "usage": None,
        }


class _Items:
    """The items of a streamed response, of which one is open at a time."""

    def __init__(self) -> None:
        self.output: list[dict[str, Any]] = []
        self._sequence = -1
        self._kind = self._id = self._text = ""

    @property
    def is_open(self) -> bool:
        return bool(self._kind)

    def event(self, kind: str, **data: Any) -> bytes:
        self._sequence += 1
        return event({"type": kind, "sequence_number": self._sequence, **data}, kind)

    def add(self, kind: str, text: str) -> list[bytes]:
        """Text of an item, which begins where another kind is open."""
        events = []
        if self._kind != kind:
            events = self.close()
            self._kind, self._text = kind, ""
            self._id = new_id("msg_" if kind == "message" else "rs_")
            item = _message if kind == "message" else _reasoning
            empty = {**item(self._id, ""), "status": "in_progress", "content": []}
            events.append(self._at("response.output_item.added", item=empty))
            events.append(self._part("response.content_part.added", part=_part(kind, "")))
        self._text += text
        if text:
            name = "output_text" if kind == "message" else "reasoning_text"
            more: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
            events.append(self._part(f"response.{name}.delta", delta=text, **more))
        return events

    def close(self) -> list[bytes]:
        """The end of the open item, if there is one."""
        kind, text = self._kind, self._text
        if not kind:
            return []
        name = "output_text" if kind == "message" else "reasoning_text"
        more: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
        item = (_message if kind == "message" else _reasoning)(self._id, text)
        events = [
            self._part(f"response.{name}.done", text=text, **more),
            self._part("response.content_part.done", part=_part(kind, text)),
            self._at("response.output_item.done", item=item),
        ]
        self.output.append(item)
        self._kind = ""
        return events

    def call(self, call: ToolCall) -> list[bytes]:
        """A call, which comes whole."""
        events = self.close()
        self._id = new_id("fc_")
        item = _call(self._id, call)
        written, at = item["arguments"], {"item_id": self._id}
        name = "response.function_call_arguments"
        empty = {**item, "arguments": "", "status": "in_progress"}
        events += [
            self._at("response.output_item.added", item=empty),
            self._at(f"{name}.delta", delta=written, **at),
            self._at(f"{name}.done", arguments=written, name=call.name, **at),
            self._at("response.output_item.done", item=item),
        ]
        self.output.append(item)
        return events

    def _at(self, kind: str, **data: Any) -> bytes:
        return self.event(kind, output_index=len(self.output), **data)

    def _part(self, kind: str, **data: Any) -> bytes:
        return self._at(kind, item_id=self._id, content_index=0, **data)


def _part(kind: str, text: str) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _message(id_: str, text: str) -> dict[str, Any]:
    done = {"status": "completed", "content": [_part("message", text)]}
    return {"type": "message", "id": id_, "role": "assistant", **done}


def _reasoning(id_: str, text: str) -> dict[str, Any]:
    done = {"status": "completed", "content": [_part("reasoning", text)]}
    return {"type": "reasoning", "id": id_, "summary": [], **done}


def _call(id_: str, call: ToolCall) -> dict[str, Any]:
    written = json.dumps(call.arguments, ensure_ascii=False)
    done = {"arguments": written, "call_id": call.id, "status": "completed"}
    return {"type": "function_call", "id": id_, "name": call.name, **done}
