"""The one error for unusable input: it names the place, what was found and what was expected."""

from __future__ import annotations


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
        message = f"{self.where}: found {self.found}; expected {self.expected}."
        super().__init__(f"{message} {hint}" if hint else message)
