"""Text and JSON of files and arguments: bytes that are not text and what is no JSON are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import InputError

_MAX_DIGITS = 300  # what a float can hold


def decode(content: bytes, where: object, expected: str) -> str:
    """UTF-8 text, without the mark that Windows' editors put in front.

    Raises:
        InputError: bytes that are not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        found = f"bytes that are not text (0x{byte:02x} at byte {error.start + 1})"
        raise InputError(where, found, f"{expected} in UTF-8") from error


def check_text(text: str, where: object) -> None:
    """Refuse half characters, which stand for bytes that are not text in arguments and streams.

    Raises:
        InputError: there is one, at a character counted from 1.
    """
    if half := re.search("[\ud800-\udfff]", text):
        code = ord(half[0])
        # Python decodes the byte 0xe9 of an argument to U+DCE9 where it stands for no character.
        found = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"U+{code:04X}"
        found = f"{found} at character {half.start() + 1}, which is no character"
        raise InputError(where, found, "text in UTF-8")


def parse_json(text: str, where: object, expected: str = "a JSON object") -> Any:
    """A JSON value.

    Raises:
        InputError: no JSON, nested too deeply, or an integer beyond a float's range, by its name.
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
    """Every value of JSON that holds no other, by its name: keys and places joined by dots."""
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
    """Stands for a number that is refused."""

    digits: int
