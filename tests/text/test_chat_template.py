"""Chat templates: the text that transformers writes, and no loop or string without end."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2.exceptions import TemplateSyntaxError
from transformers.utils.chat_template_utils import render_jinja_template

from dspark_mlx.text.chat_template import Refusal, render
from dspark_mlx.text.template_budget import OverBudget

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"x": ["a", "<b>"]}}}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": "ü"}}}
CHAT = [
    {"role": "system", "content": " be brief "},
    {"role": "user", "content": "hi <b>"},
    {"role": "assistant", "content": "<think>a</think>b", "tool_calls": [CALL]},
    {"role": "tool", "content": "4\n2", "name": "f"},
]
# What templates of Qwen, Llama, Gemma, SmolLM and Mistral do, one habit a line.
HABITS = [
    "{%- for m in messages %}{{- '<|' + m.role + '|>\n' + m['content'] | trim }}{% endfor %}",
    "{% for m in messages[::-1] %}{{ loop.index0 ~ loop.last ~ m.content }}{% endfor %}",
    "{% set ns = namespace(n=0, on=true) %}{% for m in messages[1:] if m.role != 'tool' %}"
    "{% if ns.on and loop.first %}{% set ns.n = ns.n + 1 %}{% continue %}{% endif %}{{ ns.n }}"
    "{% if loop.index > 1 %}{% break %}{% endif %}{% endfor %}",
    "{{ tools | tojson }} {{ tools | tojson(indent=4) }} {{ messages | length }}",
    "{{ messages[2].content.split('</think>')[-1].lstrip('\n') }}{{ '%s-%d' | format('a', 3) }}",
    "{% macro show(x, y=1) %}{{ x | upper }}{{ y }}{{ caller() if caller }}{% endmacro %}"
    "{{ show('a') }}{% call show('b', 2) %}inner{% endcall %}",
    "{% for k, v in tools[0].function.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% generation %}{{ messages[2]['content'] }}{% endgeneration %}",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(',') }}",
    "{% if messages | selectattr('role', 'equalto', 'none') %}always{% endif %}",
    "{% set x %}{{ bos_token }}{% for i in range(3) %}{{ i * 2 }},{% endfor %}{% endset %}{{ x }}",
    "{{ 'a' in messages[2].content and not ('z' in 'abc') }}{{ [1, 2] + [3] }}{{ {'a': (1, 2)} }}",
    "{{ messages[0].missing is defined }}{{ messages[0].missing }}{{ none }}{{ 7 // 2 ** 2 % 3 }}",
    "{{ 'x'.replace('x', 'yy').ljust(4) ~ '{}:{:>4}'.format(1, 'b') ~ 'a-b' | replace('-', '+') }}",
    "{% for m in messages recursive %}{{ loop.depth }}{{ loop([]) }}{% endfor %}",
    "{{ [3, 1] | sort }}{{ [1, 2] | sum }}{{ 2.345 | round(1) }}{{ 'a\nb' | indent(2) }}"
    "{{ dict(a=1) | items | list }}{{ 'x' | default('y') }}{{ {'b': 1, 'a': 2} | dictsort }}",
    "{{ raise_exception('Only user and assistant roles are supported!') }}",
    "{{ messages[0].content + messages }}",
    "{{ 1 / 0 }}{% bad",
]


def outcome(write: Any, source: str) -> tuple[str, str]:
    values = {"tools": TOOLS, "add_generation_prompt": True, "bos_token": "<s>"}
    try:
        return "", write(source, values)
    except Exception as error:  # noqa: BLE001 - whichever: both must fail alike
        return "fails", str(error)


def theirs(source: str, values: dict[str, Any]) -> str:
    return str(render_jinja_template([CHAT], chat_template=source, **values)[0][0])


def ours(source: str, values: dict[str, Any]) -> str:
    return render(source, {"messages": CHAT, "documents": None, **values})


@pytest.mark.parametrize("source", HABITS)
def test_it_writes_what_transformers_writes(source):
    """Counting that changes a text, a truth value, or what an error says."""
    assert outcome(ours, source) == outcome(theirs, source)


ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "left out": "{% for a in range(9999) %}{% for b in range(9999) if 0 %}{% endfor %}{% endfor %}",
    "recursion": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}"
    "{{ m(60) }}",
    "product": "{{ 'x' * 10**10 }}",
    "list": "{{ [0] * 10**10 }}",
    "power": "{{ 10 ** (10 ** 9) }}",
    "digits": "{% set n = namespace(x=3) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}"
    "{% endfor %}",
    "doubled": "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}"
    "{% endfor %}",
    "added": "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}"
    "{% endfor %}",
    "blocks": "{% set a %}aaaaaaaaaaaaaaaa{% endset %}"
    + "{% set a %}{{ a }}{{ a }}{{ a }}{{ a }}{% endset %}" * 30,
    "nested lists": "{% set a = [1] %}" + "{% set a = [a, a, a, a] %}" * 30 + "{{ a }}",
    "nested dicts": "{% set a = 1 %}" + "{% set a = dict(a=a, b=a) %}" * 60 + "{{ a|tojson }}",
    "ljust": "{{ 'x'.ljust(10**10) }}",
    "center": "{{ 'x'|center(10**10) }}",
    "center, mapped": "{{ ['x']|map('center', 10**9)|list }}",
    "%": "{{ '%9999999999d' % 1 }}",
    "% of an argument": "{{ '%*d' % (999999999, 1) }}",
    "format": "{{ '{:9999999999}'.format(1) }}",
    "format of an argument": "{{ '{:{}}'.format(1, 999999999) }}",
    "indent": "{{ ('a\n' * 99999)|indent(99999) }}",
    "tojson": "{{ [[[[1]]]]|tojson(indent=10**9) }}",
    "replace": "{{ ('a' * 999999).replace('a', 'b' * 999999) }}",
    "join": "{{ ('b' * 99999).join('a' * 99999) }}",
    "round": "{{ 5|round(-1000000000) }}",
    "bytes": "{{ (1).to_bytes(10**10) }}",
    "sum of lists": "{{ ([[1]] * 99999)|sum(start=[])|length }}",
    "source": "x" * (1 << 21),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_end_is_stopped(name):
    """A template of a checkpoint that eats the machine's memory, or never returns."""
    with pytest.raises(OverBudget):
        render(ENDLESS[name], {"messages": CHAT})


@pytest.mark.parametrize(
    "source",
    ["{% break %}", "{% continue %}", "{% for a in x %}" * 30 + "{% endfor %}" * 30],
    ids=["break", "continue", "nested"],
)
def test_what_only_python_refuses_is_a_template_error(source):
    """A SyntaxError of the Python that Jinja makes of a template."""
    with pytest.raises(TemplateSyntaxError):
        render(source, {"messages": CHAT, "x": [1]})


def test_a_long_conversation_is_within_the_budget():
    """A bound that honest templates meet: each of 2,000 messages looks through all the others."""
    source = (
        "{% for m in messages %}{% for n in messages[loop.index:] %}{{ '.' if n.role == 'tool' }}"
        "{% endfor %}{{ m.content }}{% endfor %}"
    )
    chat = [{"role": "user", "content": "word " * 100}] * 600
    assert render(source, {"messages": chat}) == "word " * 60_000


def test_the_sandbox_holds():
    """A template that reaches the interpreter."""
    for source in ("{{ ''.__class__.__mro__ }}", "{% include '/etc/passwd' %}", "{{ self._x }}"):
        assert outcome(ours, source)[1] == outcome(theirs, source)[1]


def test_a_templates_own_refusal_is_told_apart():
    with pytest.raises(Refusal, match="no"):
        render("{{ raise_exception('no') }}", {"messages": CHAT})
