"""Chat templates: Jinja as transformers runs it, within a budget of steps and sizes.

The environment has what transformers gives a template (an immutable sandbox, loop controls, the
`generation` tag, `tojson`, `raise_exception`, `strftime_now`, `namespace`, `dict`), so that it
writes the same text. The parsed template is changed so that every loop, call, filter, operator and
literal passes the budget; constants are computed when it runs, where they are counted, not when it
is compiled.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, cast

import jinja2.ext
from jinja2 import nodes, pass_context, pass_environment
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from .template_budget import Budget, OverBudget

_LONGEST_SOURCE = 1 << 20
_BUDGET: ContextVar[Budget] = ContextVar("template_budget")
# Filters that take time or memory out of proportion; no chat template has a use for them.
_LEFT_OUT = ("pprint", "striptags", "urlize", "wordwrap")


class Refusal(TemplateError):
    """What a template itself says of messages that it does not take."""


def render(source: str, values: Mapping[str, Any]) -> str:
    """The text that a template writes.

    Args:
        source: the template.
        values: what it is shown, plain data.

    Raises:
        Refusal: the template raises an exception of its own.
        OverBudget: it loops or grows beyond any use.
        jinja2.TemplateError and what Python raises: the template is wrong or does not fit `values`.
    """
    if len(source) > _LONGEST_SOURCE:
        raise OverBudget(f"it is {len(source)} characters long")
    template = _compiled(source)
    budget = _BUDGET.set(Budget(values))
    try:
        return template.render(**values)
    finally:
        _BUDGET.reset(budget)


@functools.lru_cache(maxsize=32)
def _compiled(source: str) -> jinja2.Template:
    return _Environment().from_string(source)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        extensions = [_Generation, jinja2.ext.loopcontrols]
        # Both keep constants out of the compiler: no folding, and outputs that need the context.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=extensions,
            optimized=False,
            finalize=_output,
        )
        for name in _LEFT_OUT:
            self.filters.pop(name, None)
        self.globals.pop("lipsum", None)
        self.filters.update(_OWN_FILTERS)
        self.filters = {name: _filter(name, each) for name, each in self.filters.items()}
        self.filters.update(_MARKS)
        self.tests = {name: _charged(cast(Any, each)) for name, each in self.tests.items()}
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self.globals["dict"] = _Dict()
        self.globals["namespace"] = _Namespace

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed = _Counting().visit(super()._parse(source, name, filename))
        assert isinstance(parsed, nodes.Template)
        return parsed

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _BUDGET.get()
        budget.operation(operator, left, right)
        return budget.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _BUDGET.get()
        budget.made((*args, *kwargs.values()))
        # A sandboxed str.format is a function around the method.
        method = getattr(__obj, "__wrapped__", __obj)
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str | bytes | int):
            budget.step(budget.read(owner))
            args = budget.method(method.__name__, owner, args, kwargs)
        return budget.made(super().call(__context, __obj, *args, **kwargs))


class _Counting(NodeTransformer):
    """Puts marks, filters that charge the budget, around what a template does without a call."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        # In the body, for recursive loops too; in the test, for elements that it leaves out.
        node.body.insert(0, nodes.ExprStmt(_mark("step", nodes.Const(None)), lineno=node.lineno))
        if node.test is not None:
            step = nodes.Not(_mark("step", nodes.Const(None)))
            node.test = nodes.And(step, node.test).set_lineno(node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _mark("concat", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        ends = (node.arg.start, node.arg.stop, node.arg.step)
        return _mark("slice", node.node, [end or nodes.Const(None) for end in ends])

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Expr:
        self.generic_visit(node)
        return _mark("made", node)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return _mark("made", node) if node.ctx == "load" else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _mark("read", node.expr)
        for operand in node.ops:
            operand.expr = _mark("read", operand.expr)
        return node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.AssignBlock:
        self.generic_visit(node)
        node.filter = _mark("made", node.filter, lineno=node.lineno)
        return node


def _mark(
    name: str,
    node: nodes.Expr | None,
    args: list[nodes.Expr] | None = None,
    lineno: int | None = None,
) -> nodes.Filter:
    # No template can write a name with a space.
    line = lineno or (node.lineno if node is not None else 1)
    return nodes.Filter(node, f"budget {name}", args or [], [], None, None, lineno=line)


def _step(value: object) -> None:
    _BUDGET.get().step()


def _made(value: Any) -> Any:
    return _BUDGET.get().made(value)


def _read(value: Any) -> Any:
    budget = _BUDGET.get()
    budget.step(budget.size(value))
    return value


def _concat(values: list[Any]) -> str:
    budget = _BUDGET.get()
    parts = budget.joined("", [budget.made(str(value)) for value in values])
    return str(budget.made("".join(parts)))


def _slice(value: Any, start: Any, stop: Any, step: Any) -> Any:
    return _made(value[start:stop:step])


@pass_context
def _output(context: Context, value: Any) -> str:
    return str(_made(value if isinstance(value, str) else str(value)))


_MARKS: dict[str, Callable[..., Any]] = {
    f"budget {each.__name__[1:]}": each for each in (_step, _made, _read, _concat, _slice)
}


def _charged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def charged(*args: Any, **kwargs: Any) -> Any:
        budget = _BUDGET.get()
        budget.step(sum(budget.size(value) for value in (*args, *kwargs.values())))
        return function(*args, **kwargs)

    return charged


def _filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def charged(*args: Any, **kwargs: Any) -> Any:
        budget = _BUDGET.get()
        given = (*args, *kwargs.values())
        budget.step(sum(budget.read(value) for value in given))
        if name not in _TAKING_ANY_INTEGER:
            for value in args[1:] + tuple(kwargs.values()):
                if isinstance(value, int):
                    budget.fits(abs(value))
        return budget.made(function(*args, **kwargs))

    return charged


# The first argument of these is no length.
_TAKING_ANY_INTEGER = frozenset(("default", "d", "int", "float", "format", "map", "select", "join",
    "reject", "selectattr", "rejectattr", "sum", "replace", "truncate"))  # fmt: skip


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """transformers' filter, which escapes no HTML; piece by piece, as indents multiply."""
    budget = _BUDGET.get()
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
    environment: _Environment, value: Iterable[Any], d: str = "", attribute: Any = None
) -> str:
    budget = _BUDGET.get()
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    texts = (budget.made(str(each)) for each in value)
    return str(d).join(budget.joined(str(d), texts))


def _replace(s: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = str(s), str(old), str(new)
    _BUDGET.get().replaced(text, old, new)
    return text.replace(old, new, -1 if count is None else count)


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    _BUDGET.get().formatted(str(value), "%", kwargs or args)
    return str(FILTERS["format"](value, *args, **kwargs))


def _indent(s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = str(s)
    each = len(width) if isinstance(width, str) else width
    _BUDGET.get().fits(len(text) + (len(text.splitlines()) + 1) * each)
    return str(FILTERS["indent"](s, width, first, blank))


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
    return FILTERS["round"](value, precision, method)


_OWN_FILTERS: dict[str, Callable[..., Any]] = {
    each.__name__[1:]: each for each in (_tojson, _join, _replace, _format, _indent, _sum, _round)
}


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` around an answer, which is written as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        written = self.call_method("_written")
        return nodes.CallBlock(written, [], [], body, lineno=line)

    def _written(self, caller: Macro) -> str:
        return str(caller())


class _Dict:
    """`dict` without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """Jinja's, without names that begin with an underscore; it can hold itself, so it is opaque."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _check_name(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace cannot store {str(name)[:40]!r}")


def _raise_exception(message: object) -> None:
    raise Refusal(str(message))
