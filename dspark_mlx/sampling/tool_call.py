"""A forced tool call: a grammar of the text in which a target writes one call, for llguidance."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ..errors import InputError
from ..numbers import shown
from ..text.tokenizer import Tokenizer
from .json_schema import Grammar

Tool = Mapping[str, Any]
_MAX_TOOLS = 128
# Free whitespace would let a text go on without end. Templates show a space behind commas and
# colons; where one has to be there, llguidance takes tokens out of the mask that reach over it.
_STYLE = {"whitespace_pattern": " ?", "item_separator": ", ?", "key_separator": ": ?"}


class ToolCallGrammar(Grammar):
    """Keeps an answer to one call of one of some tools.

    Args:
        tools: JSON schemas of functions, in OpenAI's form.
        tokenizer: of the target, whose format of calls mlx-lm knows.
        vocabulary: see `Grammar`.
        stop_tokens: see `Grammar`.

    Raises:
        InputError: the target's calls are not JSON, so that no schema holds for them; or see
            `Grammar`.
    """

    def __init__(
        self,
        tools: Sequence[Tool],
        tokenizer: Tokenizer,
        vocabulary: int,
        stop_tokens: Collection[int],
    ) -> None:
        if not 0 < len(tools) <= _MAX_TOOLS:
            raise InputError("tools", f"{len(tools)} tools", f"1 to {_MAX_TOOLS}, to force a call")
        parser = tokenizer.tool_parser if tokenizer.has_tool_calling else None
        kind = parser.__module__.rpartition(".")[2] if parser is not None else None
        if kind is None or kind not in FORMATS:
            found = f"a model that writes calls as {kind}" if kind else "a model without tool calls"
            expected = f"one whose calls are JSON ({', '.join(FORMATS)}), to force a call"
            hint = "A call that is not forced needs no grammar." if kind else ""
            raise InputError("tools", found, expected, hint)
        calls = [FORMATS[kind](_function(tool), tokenizer) for tool in tools]
        text = f"start: {' | '.join(calls)}\nWS: /[ \\n]?/\n"
        super().__init__(
            "tools",
            lambda matcher: str(matcher.grammar_from_lark(text)),
            tokenizer.hugging_face,
            vocabulary,
            stop_tokens,
        )


def _function(tool: Tool) -> Mapping[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str):
        raise InputError("tools", shown(tool), '{"type": "function", "function": {"name": ...}}')
    return function


def _json_tools(function: Tool, tokenizer: Tokenizer) -> str:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, as Qwen's and Hermes' models."""
    arguments = _arguments(function)
    call = {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
        # References begin at the root.
        **{name: arguments[name] for name in ("$defs", "definitions") if name in arguments},
    }
    start, end = tokenizer.tool_call_start, tokenizer.tool_call_end
    return f"{_marker(start, tokenizer)} WS {_json(call)} WS {_marker(end, tokenizer)}"


def _mistral(function: Tool, tokenizer: Tokenizer) -> str:
    """`[TOOL_CALLS]name[ARGS]{...}`."""
    start, args = (_marker(text, tokenizer) for text in (tokenizer.tool_call_start, "[ARGS]"))
    return f"{start} {json.dumps(function['name'])} {args} {_json(_arguments(function))}"


FORMATS: Mapping[str, Callable[[Tool, Tokenizer], str]] = {
    "json_tools": _json_tools,
    "mistral": _mistral,
}
"""How a call is written in Lark's grammar, by the name of mlx-lm's parser of it."""


def _arguments(function: Tool) -> Mapping[str, Any]:
    # A schema without a type would allow numbers and text, which are no arguments by name.
    return {**(function.get("parameters") or {}), "type": "object"}


def _json(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': _STYLE})}"


def _marker(text: str, tokenizer: Tokenizer) -> str:
    """A marker as the one token that it is, or as text."""
    found = tokenizer.wrapped.get_vocab().get(text)
    return json.dumps(text) if found is None else f"<[{found}]>"
