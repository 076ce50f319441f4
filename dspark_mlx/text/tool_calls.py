"""Reads the tool calls that a target wrote, with mlx-lm's parser for its tokenizer."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import InputError
from ..types import ToolCall
from .foreign import Refusing

Parser = Callable[[str, Any], Any]
"""A function of `mlx_lm.tool_parsers`: text between the markers, and tools, to one call or several.
"""


def parse_tool_calls(
    text: str, parser: Parser, tools: Sequence[Mapping[str, Any]]
) -> tuple[ToolCall, ...]:
    """The calls in a text; none where the text is not what the parser reads.

    A target can write anything between its markers, and an answer can end within a call.

    Args:
        text: what stands between the markers of a call.
        parser: see `Parser`.
        tools: JSON schemas of the functions, of which some parsers take the arguments' types.
    """
    try:
        with Refusing("tool call", "text that the parser does not read", "a call"):
            parsed = parser(text, [dict(tool) for tool in tools])
    except InputError:
        return ()
    found = [_call(each) for each in (parsed if isinstance(parsed, list) else [parsed])]
    calls = tuple(call for call in found if call is not None)
    return calls if len(calls) == len(found) else ()


def _call(parsed: Any) -> ToolCall | None:
    """A parsed call as a record; None where it has no name, or arguments that are no JSON object.

    The arguments may be JSON in a string, as some templates show them to the target.
    """
    if not isinstance(parsed, Mapping):
        return None
    name, arguments = parsed.get("name"), parsed.get("arguments", {})
    try:
        plain = json.loads(arguments if isinstance(arguments, str) else _json(arguments))
        _json(plain)
    except (TypeError, ValueError, RecursionError):
        return None
    if not isinstance(name, str) or not name or not isinstance(plain, dict):
        return None
    given = parsed.get("id")
    return ToolCall(name, plain, given if isinstance(given, str) and given else new_call_id())


def new_call_id() -> str:
    """An id for a call whose target gave it none."""
    return f"call_{secrets.token_hex(12)}"


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False)
