"""Text and JSON of files and arguments: bytes that are not text and what is no JSON are refused."""

from __future__ import annotations

import json
import re
from typing import Any

from .errors import InputError

_MOST_DIGITS = 300  # what a float can hold


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
        InputError: no JSON, nested too deeply, or an integer beyond a float's range.
    """
    try:
        return json.loads(text, parse_int=_whole)
    except RecursionError as error:
        raise InputError(where, "JSON nested too deeply", expected) from error
    except ValueError as error:
        raise InputError(where, f"text that is not JSON ({error})", expected) from error


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)
