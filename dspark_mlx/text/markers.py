"""Finds strings in text that arrives in pieces, of which one may be cut by the end of a piece."""

from __future__ import annotations

from collections.abc import Collection


def earliest(text: str, strings: Collection[str]) -> tuple[int, str] | None:
    """Where the first of several strings begins, and which it is; None where none is.

    Of strings that begin at the same place, the longest is taken.
    """
    found = [(text.find(string), -len(string), string) for string in strings]
    place, _, string = min((each for each in found if each[0] >= 0), default=(-1, 0, ""))
    return (place, string) if place >= 0 else None


def undecided(text: str, strings: Collection[str]) -> int:
    """Length of the longest end of `text` that is a beginning of a string, but not all of it."""
    return max((_overlap(text, string) for string in strings), default=0)


def _overlap(text: str, string: str) -> int:
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:length]):
            return length
    return 0
