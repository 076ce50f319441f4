"""Values of another type, size or spelling than any reader expects."""

from __future__ import annotations

import math
from random import Random
from typing import Any


class Raw(str):
    """Text that stands in a JSON document as it is."""


LONG = "long" * 25_000
STRINGS = (
    *("", " ", "0", "1", "-1", "1e3", "nan", "true", "null", "full", "auto", "default"),
    *("\x00", "\ud800", "\u202e", "e\u0301", "\u2028", "\x1b[31m", "two\nlines", "\ufeff", "🎉"),
    *("../../etc/passwd", "/", "owner/name", "%s", "{}", "{{ 1 }}", "<|end|>", "int8", LONG),
)
NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 7, 8, 31, 63, 64, 65, 1000, 10**6, 10**9),
    *(2**31, 2**32, 2**53, 2**63, 2**64, -(2**63), 10**30, Raw("1" + "0" * 5000)),
    *(0.5, -0.5, -0.0, 1.5, 1e-300, 1e300, math.nan, math.inf, -math.inf, Raw("1e999")),
)
CONTAINERS: tuple[Any, ...] = (
    *([], {}, [None], [[]], [{}], {"": None}, [0] * 10_000, ["a", 1, None], {"a": {"b": 1}}),
    Raw("[" * 60 + "]" * 60),
    Raw("[" * 50_000 + "]" * 50_000),
    Raw('{"a":' * 50_000 + "1" + "}" * 50_000),
)


def value(rng: Random) -> Any:
    """Any of them, `None` and truth values too."""
    kind = rng.random()
    if kind < 0.2:
        return rng.choice((None, True, False))
    if kind < 0.6:
        return rng.choice(NUMBERS)
    return rng.choice(STRINGS if kind < 0.8 else CONTAINERS)


def near(rng: Random, old: Any) -> Any:
    """Something close to a value: the type is often right, the meaning is not."""
    if isinstance(old, bool):
        return rng.choice((not old, int(old), str(old)))
    if isinstance(old, int):
        choices = (old + 1, old - 1, -old, 2 * old, 1000 * old, old / 2, float(old), str(old))
        return rng.choice((*choices, old + 10**6, [old]))
    if isinstance(old, float):
        return rng.choice((-old, old * 1e30, old * 1e-30, int(old) if abs(old) < 1e18 else 0))
    if isinstance(old, str):
        return rng.choice((old + "x", old[:-1], old.upper(), old * 500, [old], old + "\n"))
    if isinstance(old, list):
        some = list(old)
        rng.shuffle(some)
        repeated = old * 2
        return rng.choice((some, old[:-1], old[1:], repeated, [*old, None], [old], {"0": old}))
    if isinstance(old, dict):
        return rng.choice(([old], list(old), {key.upper(): v for key, v in old.items()}))
    return value(rng)


def shown(what: Any) -> str:
    """A value in words, short."""
    text = repr(what)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"
