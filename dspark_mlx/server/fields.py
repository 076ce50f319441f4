"""Reads the fields of a JSON body by name and type; null stands for a field that is not there."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from ..errors import InputError
from ..numbers import check_whole, shown
from ..text.messages import check_text


class Fields:
    """A JSON object of a body.

    Args:
        data: the object.
        where: its place in the body, in front of its fields' names in errors.

    Raises:
        InputError: it is no object; so do all methods for a field that is not what they read.
    """

    def __init__(self, data: Any, where: str = "") -> None:
        if not isinstance(data, dict):
            raise InputError(where or "body", shown(data), "a JSON object")
        self.data: dict[str, Any] = data
        self._where = where

    def place(self, name: str) -> str:
        """The name of a field in errors."""
        return f"{self._where}.{name}" if self._where else name

    def get(self, name: str) -> Any:
        """The field as it is; None where it is not there."""
        return self.data.get(name)

    def text(self, name: str) -> str | None:
        """A field of text."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.wrong(name, "text")
        return check_text(self.place(name), value)

    def given_text(self, name: str) -> str:
        """A field of text that must be there."""
        value = self.text(name)
        if value is None:
            raise self.wrong(name, "text")
        return value

    def required_text(self, name: str) -> str:
        """A field of text that must be there and not be empty."""
        value = self.text(name)
        if not value:
            raise self.wrong(name, "text")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """A field of true or false."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def whole(self, name: str, least: int = 1, most: int = 1 << 53) -> int | None:
        """A field of a whole number in a range."""
        value = self.get(name)
        return None if value is None else check_whole(self.place(name), value, least, most)

    def choice(self, name: str, choices: Collection[str]) -> str | None:
        """A field of one of several words."""
        value = self.get(name)
        if value is not None and (not isinstance(value, str) or value not in choices):
            raise self.wrong(name, " or ".join(choices))
        return value

    def object(self, name: str) -> Fields | None:
        """A field of an object."""
        value = self.get(name)
        return None if value is None else Fields(value, self.place(name))

    def objects(self, name: str) -> Iterator[Fields]:
        """The objects of a list; none where the field is not there."""
        value = self.get(name)
        if value is None:
            return
        if not isinstance(value, list):
            raise self.wrong(name, "a list of objects")
        for index, each in enumerate(value):
            yield Fields(each, f"{self.place(name)}[{index}]")

    def wrong(self, name: str, expected: str) -> InputError:
        """The error of a field that is something else."""
        value = self.get(name)
        return InputError(self.place(name), "nothing" if value is None else shown(value), expected)

    def refuse(self, *names: str, expected: str = "no such field; it is not supported") -> None:
        """Refuse fields whose meaning the server cannot keep, where they ask for something."""
        for name in names:
            if self.get(name) not in (None, False, [], {}, ""):
                raise self.wrong(name, expected)
