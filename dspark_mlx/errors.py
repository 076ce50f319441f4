"""The one error for unusable input: it names the place, what was found and what was expected."""

from __future__ import annotations

_LONGEST = 400


class InputError(ValueError):
    """A file, a tensor, a setting or a request that cannot be used.

    Raised before anything is generated or written. The message always has three parts, so that a
    reader can act on it: where (a file, a flag or an argument), what was found, what was expected.

    Attributes:
        where: the file, tensor, flag or argument.
        found: what is there.
        expected: what should be there.
        hint: the way out, when there is one.
    """

    def __init__(self, where: object, found: object, expected: object, hint: str = "") -> None:
        self.where = str(where)
        self.found = str(found)
        self.expected = str(expected)
        self.hint = hint
        parts = (_one_line(part) for part in (self.where, self.found, self.expected))
        message = "{}: found {}; expected {}.".format(*parts)
        super().__init__(f"{message} {hint}" if hint else message)


def _one_line(text: str) -> str:
    """Text for a terminal: one line, long text cut, what would move the cursor escaped."""
    text = " ".join(text.split())
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST * 3 // 4]} ... {text[-_LONGEST // 4 :]}"
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown)
