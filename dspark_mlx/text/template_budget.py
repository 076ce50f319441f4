"""The budget of steps and sizes that one rendering of a chat template may use.

A template comes with a checkpoint, so it is a program of unknown origin. Jinja's sandbox keeps it
from the interpreter, but not from endless loops or from making a string of terabytes. Here every
step and every new value is charged to a budget. Counting needs no second process and no signal: it
works in any thread and on any system, and it stops a template at the same place every time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import TemplateError

_STEP = 64
_ELEMENT = 16
_WORK = 1 << 26
_LONGEST = 1 << 21
_INTEGER_BITS = 4096
_TEXT = (str, bytes)
_CONTAINERS = (list, tuple, set, frozenset, dict)
# Sizes of smaller containers are computed again instead of being remembered.
_REMEMBERED = 64
_MAX_HELD = 1 << 20


class OverBudget(TemplateError):
    """A template that takes too many steps or makes too large a value."""


class Budget:
    """The steps and sizes that one rendering may still use.

    A step costs 64 units, one more for each character and 16 more for each element that it reads or
    makes. 2^26 units are a few seconds; today's templates use less than a hundredth of them.

    Args:
        given: the template's variables; a longer conversation gets a larger budget.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._sizes: dict[int, tuple[object, int]] = {}
        self._held = 0
        self._left = 0
        size = sum(self.size(value) for value in given.values())
        messages = len(given.get("messages") or ())
        # Some templates go through all messages for each message.
        self._left = _WORK + 256 * size + 16 * _STEP * messages * messages
        self._longest = _LONGEST + 16 * size

    def step(self, work: int = 0) -> None:
        """Charge one step and `work`, the units of what it reads or makes.

        Raises:
            OverBudget: the budget is used up.
        """
        self._left -= _STEP + work
        if self._left < 0:
            raise OverBudget("it takes too many steps")

    def fits(self, size: int) -> None:
        """Refuse a value of `size` characters or elements before it is made.

        Raises:
            OverBudget: the value would be too long.
        """
        if size > self._longest:
            raise OverBudget(f"it makes a value of {size} characters or elements")

    def made(self, value: Any) -> Any:
        """The same value after it is charged; an iterator is charged while it is read.

        Raises:
            OverBudget: the value is too large, or the budget is used up.
        """
        if isinstance(value, Iterator):
            return self._counted(value)
        self.step(self.read(value))
        self.fits(self.size(value))
        if self._held > _MAX_HELD:
            self._sizes.clear()
            self._held = 0
        return value

    def read(self, value: object) -> int:
        """Units of work to go once over a value, without going into its elements."""
        if isinstance(value, _TEXT):
            return len(value)
        return _ELEMENT * len(value) if isinstance(value, (*_CONTAINERS, range)) else 0

    def size(self, value: object) -> int:
        """Number of characters and elements that printing a value would visit."""
        if isinstance(value, _TEXT):
            return 1 + len(value)
        if not isinstance(value, _CONTAINERS):
            return 1
        if id(value) in self._sizes:
            return self._sizes[id(value)][1]
        inside: Iterable[object] = value
        if isinstance(value, dict):
            inside = [*value.keys(), *value.values()]
        self._left -= _ELEMENT * len(value)
        size = 1 + len(value) + sum(self.size(each) for each in inside)
        if size > _REMEMBERED:
            # The value is kept, so that no other value gets its id.
            self._sizes[id(value)] = (value, size)
            self._held += len(value)
        return size

    def operation(self, operator: str, left: Any, right: Any) -> None:
        """Refuse an operation whose result would be too large.

        Raises:
            OverBudget: see `fits`.
        """
        self.step(self.read(left) + self.read(right))
        if isinstance(left, int) and isinstance(right, int):
            self._integers(operator, left, right)
        elif operator == "*":
            for several, times in ((left, right), (right, left)):
                if isinstance(times, int) and isinstance(several, (*_TEXT, list, tuple)):
                    self.fits(self.size(several) * max(times, 0))
        elif operator == "%" and isinstance(left, _TEXT):
            self.formatted(left, "%", right)

    def _integers(self, operator: str, left: int, right: int) -> None:
        bits = left.bit_length() + right.bit_length()
        if operator == "**":
            bits = left.bit_length() * max(right, 1)
        if bits > _INTEGER_BITS:
            raise OverBudget("it calculates with an integer of thousands of digits")

    def formatted(self, pattern: Any, sign: str, values: object) -> None:
        """Refuse a format whose fields could become too long.

        Args:
            pattern: the format.
            sign: the character that begins a field, "%" or "{".
            values: the values of the fields.

        Raises:
            OverBudget: a field's width is an argument; or see `fits`.
        """
        text = pattern if isinstance(pattern, str) else pattern.decode("latin-1")
        if (sign == "%" and "*" in text) or (sign == "{" and re.search(r"\{[^{}]+\{", text)):
            raise OverBudget("it formats with a width that is an argument")
        widest = max((int(digits[:9]) for digits in re.findall(r"[0-9]+", text)), default=0)
        self.fits(len(text) + text.count(sign) * (widest + self.size(values)))

    def method(self, name: str, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Refuse a call of a string's or an integer's method that would make too large a value.

        Args:
            name: name of the method.
            owner: the string or integer.
            args, kwargs: arguments of the call.

        Returns:
            The positional arguments to call the method with: iterators are read into lists.

        Raises:
            OverBudget: no template needs the method; or see `fits`.
        """
        for value in (*args, *kwargs.values()):
            if isinstance(value, int):
                self.fits(abs(value))
        if not isinstance(owner, _TEXT):
            return args
        if name in ("format", "format_map"):
            self.formatted(owner, "{", (*args, *kwargs.values()))
        elif name == "expandtabs":
            widths = [value for value in (*args, *kwargs.values(), 8) if isinstance(value, int)]
            self.fits(len(owner) * max(widths))
        elif name == "replace" and len(args) > 1:
            self.replaced(owner, *args[:2])
        elif name == "join" and args:
            return (self.joined(owner, args[0]),)
        elif name in ("translate", "maketrans"):
            raise OverBudget(f"it calls {name}")
        return args

    def replaced(self, text: Any, old: Any, new: Any) -> None:
        """Refuse a replacement that would make `text` too long.

        Raises:
            OverBudget: see `fits`.
        """
        kind = type(text) if isinstance(text, bytes) else str
        if isinstance(old, kind) and isinstance(new, kind):
            self.fits(len(text) + text.count(old) * max(len(new) - len(old), 0))

    def joined(self, separator: Any, parts: Iterable[Any]) -> list[Any]:
        """The parts to join as a list, refused where the result would be too long.

        Raises:
            OverBudget: see `fits`.
        """
        held = list(parts)
        self.fits(sum(self.read(part) for part in held) + len(separator) * len(held))
        return held

    def _counted(self, values: Iterator[Any]) -> Iterator[Any]:
        for value in values:
            self.step()
            yield value


BUDGET: ContextVar[Budget] = ContextVar("template_budget")
"""The budget of the rendering that runs in this thread or task."""
