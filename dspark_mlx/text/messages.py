"""Checks a user's texts and chat messages before a tokenizer or a template gets them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError
from ..numbers import plain, shown
from ..system.strict_json import check_text

_DEPTH = 64
_IMAGE = {"type": "image"}
# The keys that templates and servers use for an answer's reasoning; one stands for all of them.
_REASONING = ("reasoning_content", "thinking", "reasoning")


def check_messages(messages: Sequence[Any], images: bool = False) -> list[dict[str, Any]]:
    """Checked copies of chat messages, as plain data.

    Args:
        messages: each one a mapping, or an object with `model_dump` as API clients have them. It
            has a "role" and usually a "content": text, None, or a list of text parts. Other keys
            pass to the template. Keys whose value is None are left out, as transformers does.
        images: whether `{"type": "image"}` may stand among the parts, in an image's place.

    Raises:
        InputError: a message cannot be used; it is named by its index.
    """
    return [_message(f"messages[{index}]", each, images) for index, each in enumerate(messages)]


def _message(where: str, message: Any, images: bool) -> dict[str, Any]:
    data = plain_data(where, message)
    if not isinstance(data, dict):
        raise InputError(where, shown(message), 'a message with "role" and "content"')
    kept = {key: value for key, value in data.items() if value is not None}
    role = kept.get("role")
    if not isinstance(role, str) or not role:
        found = "no role" if role is None else f"the role {shown(role)}"
        raise InputError(where, found, 'a role, as "user" or "system"')
    _check_content(f"{where}.content", kept.get("content", ""), images)
    reasoning = next((kept[key] for key in _REASONING if key in kept), None)
    if reasoning is not None:
        kept = {"thinking": reasoning, **kept, "reasoning_content": reasoning}
    return kept


def _check_content(where: str, content: Any, images: bool) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise InputError(where, shown(content), "text, or a list of text parts")
    for index, part in enumerate(content):
        if images and part == _IMAGE:
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            found = f"a part of type {shown(kind)}" if kind not in (None, "text") else shown(part)
            raise InputError(f"{where}[{index}]", found, '{"type": "text", "text": "..."}')


def has_parts(message: Mapping[str, Any]) -> bool:
    """Whether a message's content is a list of parts."""
    return isinstance(message.get("content"), list)


def plain_data(where: str, value: Any) -> Any:
    """A value as plain JSON data: text, numbers, lists and mappings.

    Args:
        where: names the value in errors.
        value: the value, in which objects with `model_dump` may stand.

    Raises:
        InputError: a part of it is something else, half a character, or a number that is not
            finite; the part is named.
    """
    return _data(where, value, _DEPTH)


def _data(where: str, value: Any, depth: int) -> Any:
    """A value as plain JSON data, because a template could call methods of other objects."""
    if depth < 0:
        raise InputError(where, f"more than {_DEPTH} levels", "less deeply nested data")
    if isinstance(value, str):
        return check_text(where, str.__str__(value))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Mapping):
        return {
            str(_data(where, key, depth - 1)): _data(f"{where}.{shown(key)[1:-1]}", each, depth - 1)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_data(f"{where}[{i}]", each, depth - 1) for i, each in enumerate(value)]
    if callable(getattr(value, "model_dump", None)):
        return _data(where, value.model_dump(), depth - 1)
    number = plain(value)
    if isinstance(number, int | float):
        if not math.isfinite(number):
            raise InputError(where, shown(number), "finite numbers")
        return int(number) if isinstance(number, int) else float(number)
    raise InputError(where, f"a {type(value).__name__}", "text, numbers, lists and mappings")
