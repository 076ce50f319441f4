"""Makes a parsed chat template count its work: marks that charge the budget as it runs.

Calls, filters and arithmetic operators pass the template's environment, which counts them. What a
template does without any of these (loops, slices, literals, comparisons) gets a mark: a filter that
charges the budget.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.runtime import Context
from jinja2.visitor import NodeTransformer

from .template_budget import BUDGET


def add_marks(template: nodes.Template) -> nodes.Template:
    """The parsed template with its marks, which are filters of `MARKS`."""
    marked = _AddMarks().visit(template)
    assert isinstance(marked, nodes.Template)
    return marked


class _AddMarks(NodeTransformer):
    """Puts marks around the loops, slices, literals and comparisons of a parsed template."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        # The mark in the body also counts recursive loops; the one in the test counts the elements
        # that the test leaves out.
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
    # The name has a space, so that no template can use the filter itself.
    line = lineno or (node.lineno if node is not None else 1)
    return nodes.Filter(node, f"budget {name}", args or [], [], None, None, lineno=line)


def _step(value: object) -> None:
    BUDGET.get().step()


def _made(value: Any) -> Any:
    return BUDGET.get().made(value)


def _read(value: Any) -> Any:
    budget = BUDGET.get()
    budget.step(budget.size(value))
    return value


def _concat(values: list[Any]) -> str:
    budget = BUDGET.get()
    parts = budget.joined("", [budget.made(str(value)) for value in values])
    return str(budget.made("".join(parts)))


def _slice(value: Any, start: Any, stop: Any, step: Any) -> Any:
    return _made(value[start:stop:step])


@pass_context
def output(context: Context, value: Any) -> str:
    """The text of a printed value, charged; the environment calls it for every output."""
    return str(_made(value if isinstance(value, str) else str(value)))


MARKS: dict[str, Callable[..., Any]] = {
    f"budget {each.__name__[1:]}": each for each in (_step, _made, _read, _concat, _slice)
}
"""The filters that marks call, by name."""
