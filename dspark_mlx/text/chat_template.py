"""Renders chat templates: Jinja as transformers runs it, within a budget of steps and sizes.

The environment has what transformers gives a template (an immutable sandbox, loop controls, the
`generation` tag, `tojson`, `raise_exception`, `strftime_now`, `namespace`, `dict`), so that it
writes the same text. Every loop, call, filter, operator and literal charges the budget, see
`template_marks` and `template_filters`. Constants are computed when the template runs, where they
are counted, and not when it is compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from .template_budget import BUDGET, Budget, OverBudget
from .template_filters import FILTERS, charged_filter, charged_test
from .template_marks import MARKS, add_marks, output

_LONGEST_SOURCE = 1 << 20
# Filters that take time or memory out of proportion; no chat template needs them.
_LEFT_OUT = ("pprint", "striptags", "urlize", "wordwrap")


class Refusal(TemplateError):
    """A template's own refusal of messages, raised by its `raise_exception`."""


def render(source: str, values: Mapping[str, Any]) -> str:
    """The text that a template writes.

    Args:
        source: the template.
        values: its variables, plain data.

    Raises:
        Refusal: the template refuses the messages.
        OverBudget: the template takes too many steps or makes too large a value.
        jinja2.TemplateError: the template is wrong, or does not fit `values`; Python's own
            exceptions are raised for the same reasons.
    """
    if len(source) > _LONGEST_SOURCE:
        raise OverBudget(f"it is {len(source)} characters long")
    template = _compiled(source)
    budget = BUDGET.set(Budget(values))
    try:
        return template.render(**values)
    finally:
        BUDGET.reset(budget)


@functools.lru_cache(maxsize=32)
def _compiled(source: str) -> jinja2.Template:
    try:
        return _Environment().from_string(source)
    except SyntaxError as error:
        # Jinja writes Python, which refuses a break outside of a loop and loops nested too deeply.
        raise TemplateSyntaxError(error.msg, error.lineno or 0) from error


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        extensions = [_Generation, jinja2.ext.loopcontrols]
        # The compiler must not compute constants, which would escape the budget: `optimized=False`
        # switches constant folding off, and `finalize` needs the context of a running template.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=extensions,
            optimized=False,
            finalize=output,
        )
        for name in _LEFT_OUT:
            self.filters.pop(name, None)
        self.globals.pop("lipsum", None)
        self.filters.update(FILTERS)
        self.filters = {name: charged_filter(name, each) for name, each in self.filters.items()}
        self.filters.update(MARKS)
        self.tests = {name: charged_test(cast(Any, each)) for name, each in self.tests.items()}
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self.globals["dict"] = _Dict()
        self.globals["namespace"] = _Namespace

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return add_marks(super()._parse(source, name, filename))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = BUDGET.get()
        budget.operation(operator, left, right)
        return budget.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = BUDGET.get()
        budget.made((*args, *kwargs.values()))
        # The sandbox wraps str.format in a function.
        method = getattr(__obj, "__wrapped__", __obj)
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str | bytes | int):
            budget.step(budget.read(owner))
            args = budget.method(method.__name__, owner, args, kwargs)
        return budget.made(super().call(__context, __obj, *args, **kwargs))


class _Generation(jinja2.ext.Extension):
    """The tag `{% generation %}...{% endgeneration %}`, which writes its content unchanged.

    transformers uses it to find the assistant's tokens.
    """

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        written = self.call_method("_written")
        return nodes.CallBlock(written, [], [], body, lineno=line)

    def _written(self, caller: Macro) -> str:
        return str(caller())


class _Dict:
    """The global `dict`, without the attributes of Python's class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """Jinja's namespace, which refuses names that begin with an underscore.

    Its text is fixed, because a namespace can hold itself.
    """

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
