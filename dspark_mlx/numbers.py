"""Checks of what callers pass: numbers as Python, NumPy or MLX values, and callbacks."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection
from typing import Any, SupportsIndex

from .errors import InputError

_MAX = (1 << 63) - 1
_SHOWN = 60


def shown(value: object) -> str:
    """The value as text for an error message: one line, cut when it is long."""
    # Python refuses to print integers of thousands of digits.
    if isinstance(value, int) and value.bit_length() > 256:
        return "an integer of more than 77 digits"
    text = " ".join(ascii(value).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def plain(value: Any) -> Any:
    """A NumPy or MLX scalar as a Python int or float; every other value unchanged."""
    if type(value) in (int, float):  # nearly all are, of prompts and biases very many
        return value
    # A boolean of Python, NumPy or MLX is not a number here.
    if isinstance(value, bool | str | bytes | bytearray) or "bool" in str(_dtype(value)):
        return value
    if getattr(value, "ndim", 0) != 0:
        return value
    if "int" in str(_dtype(value)) and hasattr(value, "item"):
        return value.item()  # MLX's integers are no SupportsIndex in every release
    if isinstance(value, SupportsIndex):
        try:
            return operator.index(value)
        except TypeError:
            pass  # an array of MLX or NumPy that holds a float
    if hasattr(value, "__float__") and not isinstance(value, int):
        return float(value)
    return value


def _dtype(value: object) -> object:
    return getattr(value, "dtype", "")


def check_whole(name: str, value: object, least: int, most: int = _MAX) -> int:
    """The value as an integer.

    Raises:
        InputError: the value is not a whole number from `least` to `most`.
    """
    number = plain(value)
    if not _is_int(number) or not least <= number <= most:
        above = f", {most} or less" if _is_int(number) and number > most else ""
        raise InputError(name, shown(value), f"a whole number, {least} or more{above}")
    return int(number)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_number(name: str, value: Any, inside: Callable[[float], bool], expected: str) -> float:
    """The value as an integer or a float.

    Raises:
        InputError: the value is not a finite number, or `inside` is false for it; the message
            says what was `expected`.
    """
    number = plain(value)
    taken = isinstance(number, int | float) and not isinstance(number, bool)
    if not taken or not abs(number) < math.inf or not inside(number):
        raise InputError(name, shown(value), f"a number, {expected}")
    assert isinstance(number, int | float)
    return number


def listed(value: Any) -> Any:
    """A one-dimensional array as a list of Python numbers; every other value unchanged."""
    if getattr(value, "ndim", None) == 1 and hasattr(value, "tolist"):
        return value.tolist()
    return value


def token_ids(name: str, value: Any, size: int | None = None) -> list[int]:
    """Token ids as Python integers.

    Args:
        name: what the ids are, for errors.
        value: a collection of ids (Python, NumPy or MLX integers), or an array of ids.
        size: vocabulary size, which every id is below; None when it is not known yet.

    Raises:
        InputError: the value is not a collection of ids, or an id is out of range.
    """
    ids = listed(value)
    if not isinstance(ids, Collection) or isinstance(ids, str | bytes | bytearray | memoryview):
        raise InputError(name, shown(value), "a collection of token ids")
    ordered: list[Any] = list(ids)
    upper = "0 or more" if size is None else f"from 0 to {size - 1}"
    most = _MAX if size is None else size - 1
    # Long prompts are checked at every turn, and one id at a time takes as long as some rounds.
    if {*map(type, ordered)} == {int} and min(ordered) >= 0 and max(ordered) <= most:
        return ordered
    taken = []
    for position, each in enumerate(ordered):
        token = plain(each)
        if not _is_int(token) or not 0 <= token <= most:
            found = f"{shown(each)} at position {position}"
            raise InputError(name, found, f"token ids {upper}")
        taken.append(token)
    return taken


def check_numbers(
    where: str, value: object, count: int | None, low: float = -math.inf, high: float = math.inf
) -> list[float]:
    """A list of `count` finite numbers from `low` to `high`; None for any count.

    Raises:
        InputError: the value is something else.
    """
    if not isinstance(value, list):
        raise InputError(where, shown(value), "a list of numbers")
    for number in value:
        if type(number) not in (int, float) or not low <= number <= high:
            raise InputError(where, shown(number), f"numbers from {low:g} to {high:g}")
    if count is not None and len(value) != count:
        raise InputError(where, f"{len(value)} numbers", str(count))
    return [float(number) for number in value]


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False; "no" is true, and 0 is a number.

    Raises:
        InputError: it names the argument.
    """
    if not isinstance(value, bool):
        raise InputError(name, shown(value), "True or False")


def check_callback(name: str, value: object) -> None:
    """Refuse a callback that cannot be called; None is none.

    Raises:
        InputError: it names the argument.
    """
    if value is not None and not callable(value):
        raise InputError(name, shown(value), "a function")
