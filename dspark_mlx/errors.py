"""InputError, the one error for unusable input, and the refusals of a decoder that serves many."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Characters of each part: lists of tensors and other libraries' messages can fill pages.
_LONGEST = 400


class InputError(ValueError):
    """A file, a tensor, a setting or a request that cannot be used.

    Raised before anything is generated or written. The message always has three parts, so that a
    reader can act on it: where (a file, a flag or an argument), what was found, what was expected.
    It is one line: line breaks are folded, what cannot be printed is escaped, and long parts are
    cut.

    Attributes:
        where: the file, tensor, flag or argument at fault.
        found: the value found there.
        expected: the values that are allowed there.
        hint: what the user can do about it; "" when the other parts say it.
    """

    def __init__(self, where: object, found: object, expected: object, hint: str = "") -> None:
        self.where = one_line(where)
        self.found = one_line(found)
        self.expected = one_line(expected)
        self.hint = one_line(hint)
        message = f"{self.where}: found {self.found}; expected {self.expected}."
        super().__init__(f"{message} {self.hint}" if hint else message)


class MemoryLimitError(InputError):
    """A request that would need more memory than there is; refused before the machine swaps.

    Args:
        needed: bytes that it needs.
        free: bytes that it could have.
        asked: what it asks for, in words.
        name: whose memory it is.
        later: whether it could be had when requests that run have ended.

    Attributes:
        needed, free, later: the arguments.
    """

    def __init__(self, needed: int, free: int, asked: str, name: str, later: bool = False) -> None:
        self.needed, self.free, self.later = needed, free, later
        super().__init__(
            "memory",
            f"a request that needs {shown_bytes(needed)} ({asked})",
            f"at most {shown_bytes(max(free, 0))}, which is free of {name}",
            "Ask again when other requests have ended."
            if later
            else "Lower max_tokens, shorten the prompt, or load with kv_bits (--kv-bits).",
        )


class BusyError(RuntimeError):
    """As many requests wait as may; the same one can be submitted again later.

    Args:
        active: number of requests that decode.
        waiting: number of requests that wait.
    """

    def __init__(self, active: int, waiting: int) -> None:
        self.active, self.waiting = active, waiting
        super().__init__(f"{active} requests run and {waiting} wait; try again later")


class ClosedError(RuntimeError):
    """The decoder was closed and takes no more requests."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The hint of an error for an unknown word: the known one that was meant; "" for none.

    It is the longest one that the word begins with (--temperature, --temp), else the most similar.
    """
    known = [one for one in known if len(one) > 2]
    begun = sorted((one for one in known if word.startswith(one)), key=len)
    close = begun[-1:] or difflib.get_close_matches(word, known, 1)
    return f"Did you mean {close[0]}?" if close else ""


def shown_bytes(number: int) -> str:
    """A number of bytes for messages, as "8.1 GB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number / 1e3:.1f} kB"


def one_line(value: object, longest: int = _LONGEST) -> str:
    """A value as one printable line, cut in the middle when it is longer than `longest`."""
    text = str(value)
    if len(text) > longest:
        # The end of a path or of a message often says more than its middle.
        tail = longest // 4
        text = f"{text[: longest - tail]} ... {text[-tail:]}"
    text = " ".join(line.strip() for line in text.splitlines() if line.strip())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
