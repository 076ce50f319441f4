"""Chat templates that are wrong, endless, too large, or ask for more than a template may have."""

from __future__ import annotations

from random import Random

_NASTY = (
    "{% for m in messages %}",
    "{{ messages[0]['content'] }",
    "{% endfor %}",
    "{{ nothing.of.it }}",
    "{{ messages[99].content }}",
    "{{ messages[0].content.x.y }}",
    "{{ raise_exception('no') }}",
    "{{ raise_exception('two\nlines') }}",
    "{{ raise_exception(messages) }}",
    "{{ 1 / 0 }}",
    "{{ 'a' + 1 }}",
    "{{ messages | nofilter }}",
    "{{ messages | tojson(indent=9) }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% include 'config.json' %}",
    "{% import 'os' as os %}",
    "{% extends 'x' %}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% for i in range(10 ** 9) %}{% endfor %}",
    "{% for i in range(3000) %}{% for j in range(3000) %}{% for k in range(3000) %}x"
    "{% endfor %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10 ** 10 }}",
    "{{ 'a' * 10 ** 7 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ [0] * 10 ** 9 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ 'a'.center(10 ** 10) }}",
    "{{ messages[0]['content'] | center(10 ** 10) }}",
    "{% set ns = namespace(a='a') %}{% for i in range(40) %}{% set ns.a = ns.a + ns.a %}"
    "{% endfor %}{{ ns.a }}",
    "{{ strftime_now('%Y') }}",
    "{{ strftime_now(messages) }}",
    "",
    " ",
    "\x00",
    "\ud800",
    "🎉\u202e",
    "x" * 100_000,
    "{" * 5000,
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{{ " + "1+" * 30000 + "1 }}",
    "{% if true %}" * 500 + "{% endif %}" * 500,
    "{% generation %}x{% endgeneration %}",
    "{% break %}",
)


def damage(rng: Random, template: str) -> tuple[str, str]:
    """Another template, and what it is in words."""
    if rng.random() < 0.75:
        nasty = rng.choice(_NASTY)
        after = template if rng.random() < 0.3 else ""
        return nasty + after, f"the template is {nasty[:60]!r}" + " and the old one" * bool(after)
    at = rng.randrange(len(template))
    end = min(at + rng.randrange(1, 20), len(template))
    put = rng.choice(("", template[at:end] * 2, "{{", "}}", "{%", "\n", "messages"))
    return template[:at] + put + template[
        end:
    ], f"the template has {put!r} for {template[at:end]!r}"
