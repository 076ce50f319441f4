"""Strict decoding of text and JSON, from files and from arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import InputError

_MAX_DIGITS = 300  # what a float can hold


def decode(content: bytes, where: object, expected: str) -> str:
    """The text of UTF-8 bytes, without the byte order mark that Windows' editors put in front.

    Args:
        content: the bytes.
        where: names them in errors.
        expected: what they should be, for messages.

    Raises:
        InputError: the bytes are not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        found = f"bytes that are not text (0x{byte:02x} at byte {error.start + 1})"
        raise InputError(where, found, f"{expected} in UTF-8") from error


def check_text(where: object, text: str) -> str:
    """The same text, refused where it holds a surrogate, which is half a character.

    Python makes surrogates of bytes that are not UTF-8. No tokenizer has an id for one, and only
    the caller knows what to put in its place.

    Args:
        where: names the text in errors.
        text: the text.

    Raises:
        InputError: there is one; the message has its code and its position, counted from 1.
    """
    if half := re.search("[\ud800-\udfff]", text):
        code = ord(half[0])
        # Python decodes a byte of an argument that is not UTF-8, say 0xe9, to U+DCE9.
        found = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"U+{code:04X}"
        found = f"{found} at character {half.start() + 1}, which is no character"
        raise InputError(where, found, "text in UTF-8")
    return text


def parse_json(text: str, where: object, expected: str = "a JSON object") -> Any:
    """The JSON value that a text holds.

    Args:
        text: the text.
        where: names it in errors.
        expected: what it should be, for messages.

    Raises:
        InputError: the text is not JSON, is nested too deeply, or has an integer beyond a float's
            range, which is named by its keys.
    """
    huge: list[_Huge] = []

    def whole(digits: str) -> int | _Huge:
        if len(digits) <= _MAX_DIGITS:
            return int(digits)
        huge.append(_Huge(len(digits)))
        return huge[-1]

    try:
        data = json.loads(text, parse_int=whole)
    except RecursionError as error:
        raise InputError(where, "JSON nested too deeply", expected) from error
    except ValueError as error:
        raise InputError(where, f"text that is not JSON ({error})", expected) from error
    for name, value in leaves(data) if huge else ():
        if isinstance(value, _Huge):
            found = f"{name or 'a number'} of {value.digits} digits"
            raise InputError(where, found, "a number within a float's range")
    return data


def leaves(value: object) -> Iterator[tuple[str, object]]:
    """Every number, text and constant inside a JSON value, with its keys joined by dots."""
    waiting = [("", value)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict | list):
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(f"{name}.{key}" if name else str(key), each) for key, each in inner]
        else:
            yield name, value


@dataclass(frozen=True)
class _Huge:
    """An integer with too many digits, held until its name is known."""

    digits: int
