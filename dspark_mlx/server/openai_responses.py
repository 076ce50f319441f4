"""/v1/responses: what it reads. Nothing is stored, so that every request holds its conversation."""

from __future__ import annotations

from typing import Any

from .asked import Asked
from .fields import Fields
from .generation import Generation
from .openai_chat import template_call
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

_ROLES = ("system", "developer", "user", "assistant")


def read(body: Fields, generation: Generation) -> Asked:
    """The request of a body."""
    body.refuse("previous_response_id", "conversation", expected="the whole conversation in input")
    body.refuse("background", "prompt")
    reasoning, text = body.object("reasoning"), body.object("text")
    effort = reasoning.text("effort") if reasoning else None
    variables = template_variables(body)
    if effort:
        variables.setdefault("reasoning_effort", effort)
    return Asked(
        prompts=[_messages(body)],
        settings=sampling(body),
        max_tokens=body.whole("max_output_tokens"),
        stop=stops(body),
        **tool_choice(body, _tools(body)),
        one_call=not body.flag("parallel_tool_calls", True),
        thinking=thinking_of(effort),
        template_kwargs=variables,
        schema=schema_of(text, "format") if text else None,
        stream=body.flag("stream"),
    )


def _tools(body: Fields) -> list[dict[str, Any]]:
    found = []
    for tool in body.objects("tools"):
        if tool.get("type") != "function":
            raise tool.wrong("type", '"function"; tools that a server runs are not there')
        found.append(function_tool(tool))
    return found


def _messages(body: Fields) -> list[dict[str, Any]]:
    """The conversation as chat templates take it; calls join the message that they belong to."""
    messages: list[dict[str, Any]] = []
    if instructions := body.text("instructions"):
        messages.append({"role": "system", "content": instructions})
    given = body.get("input")
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": body.required_text("input")}]
    said = len(messages)
    for item in body.objects("input"):
        _add(messages, item)
    if len(messages) == said:
        raise body.wrong("input", "text, or a list of items")
    return messages


def _add(messages: list[dict[str, Any]], item: Fields) -> None:
    kind = item.get("type") or "message"
    if kind == "message":
        role = item.choice("role", _ROLES)
        if role is None:
            raise item.wrong("role", " or ".join(_ROLES))
        if item.get("content") is None:
            raise item.wrong("content", "text, or a list of parts")
        content = text_of(item.place("content"), item.get("content"))
        if role == "assistant":
            _answer(messages)["content"] += content
        else:
            role = "system" if role == "developer" else role
            messages.append({"role": role, "content": content})
    elif kind == "function_call":
        call = template_call(item.text("call_id"), item.required_text("name"), item, "arguments")
        _answer(messages).setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        output = text_of(item.place("output"), item.get("output"))
        id_ = item.text("call_id") or ""
        messages.append({"role": "tool", "tool_call_id": id_, "content": output})
    elif kind == "reasoning":
        texts = [part.text("text") or "" for part in item.objects("content")]
        if texts:
            _answer(messages)["reasoning_content"] = "".join(texts)
    else:
        raise item.wrong("type", "message, function_call, function_call_output or reasoning")


def _answer(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's message that items of one answer belong to."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]
