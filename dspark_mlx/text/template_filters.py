"""The filters and tests of chat templates, which charge the budget before they make a value.

`FILTERS` has transformers' `tojson` and those of Jinja's filters that could make a large value from
small arguments; each computes the size of its result first.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import Environment, pass_context, pass_environment
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context

from .template_budget import BUDGET, OverBudget


def charged_test(function: Callable[..., Any]) -> Callable[..., Any]:
    """A test of templates ("is defined") that charges the budget for what it reads."""

    @functools.wraps(function)
    def charged(*args: Any, **kwargs: Any) -> Any:
        budget = BUDGET.get()
        budget.step(sum(budget.size(value) for value in (*args, *kwargs.values())))
        return function(*args, **kwargs)

    return charged


def charged_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that charges the budget for what it reads and makes, and refuses large lengths."""

    @functools.wraps(function)
    def charged(*args: Any, **kwargs: Any) -> Any:
        budget = BUDGET.get()
        given = (*args, *kwargs.values())
        budget.step(sum(budget.read(value) for value in given))
        if name not in _TAKING_ANY_INTEGER:
            for value in args[1:] + tuple(kwargs.values()):
                if isinstance(value, int):
                    budget.fits(abs(value))
        return budget.made(function(*args, **kwargs))

    return charged


# The first argument of these filters is not a length.
_TAKING_ANY_INTEGER = frozenset(("default", "d", "int", "float", "format", "map", "select", "join",
    "reject", "selectattr", "rejectattr", "sum", "replace", "truncate"))  # fmt: skip


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson` of transformers, which escapes no HTML.

    It encodes piece by piece, because nested indents can make a text much longer than its value.
    """
    budget = BUDGET.get()
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    if indent is None and separators is None:
        budget.step(budget.size(value))
        return encoder.encode(value)
    for piece in (indent, *(separators or ())):
        budget.fits(piece if isinstance(piece, int) else len(piece or ""))
    pieces, length = [], 0
    for piece in encoder.iterencode(value):
        length += len(piece)
        budget.step(len(piece))
        budget.fits(length)
        pieces.append(piece)
    return "".join(pieces)


@pass_environment
def _join(
    environment: Environment, value: Iterable[Any], d: str = "", attribute: Any = None
) -> str:
    budget = BUDGET.get()
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    texts = (budget.made(str(each)) for each in value)
    return str(d).join(budget.joined(str(d), texts))


def _replace(s: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = str(s), str(old), str(new)
    BUDGET.get().replaced(text, old, new)
    return text.replace(old, new, -1 if count is None else count)


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    BUDGET.get().formatted(str(value), "%", kwargs or args)
    return str(JINJA_FILTERS["format"](value, *args, **kwargs))


def _indent(s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = str(s)
    each = len(width) if isinstance(width, str) else width
    BUDGET.get().fits(len(text) + (len(text.splitlines()) + 1) * each)
    return str(JINJA_FILTERS["indent"](s, width, first, blank))


@pass_context
def _sum(context: Context, iterable: Iterable[Any], attribute: Any = None, start: Any = 0) -> Any:
    environment = context.environment
    if attribute is not None:
        iterable = map(make_attrgetter(environment, attribute), iterable)
    total = start
    for value in iterable:
        total = environment.call_binop(context, "+", total, value)  # type: ignore[attr-defined]
    return total


def _round(value: Any, precision: int = 0, method: str = "common") -> Any:
    if not -1000 < precision < 1000:
        raise OverBudget("it rounds to thousands of digits")
    return JINJA_FILTERS["round"](value, precision, method)


FILTERS: dict[str, Callable[..., Any]] = {
    each.__name__[1:]: each for each in (_tojson, _join, _replace, _format, _indent, _sum, _round)
}
