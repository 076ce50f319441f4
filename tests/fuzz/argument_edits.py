"""Edits of a command line: odd values of every flag, flags that clash, too many, too few."""

from __future__ import annotations

import argparse
from random import Random

from . import odd

# A large value of these is a request for much work, which nobody refuses.
_WORK = {"samples", "repeats", "steps", "answer_tokens", "accumulate", "max_samples"}
# Without these a command fetches the built-in pair, or uploads.
_KEPT = {"--model", "--target", "target"}
_NEVER = {"help", "upload_repo"}
_PLACES: tuple[str, ...]
_PLACES = ("target", "drafter", "prompts.jsonl", "target/config.json", "gone", "gone/deeper", ".")
_PLACES += ("", " ", "drafter/", "./target", "*", "[", "~", "-", "owner/name", "a/b/c.gguf", "\t")
_PLACES += ("owner/name@rev", "name with spaces", "é", "🎉", "\udcff\udcfe", "x" * 300, "out/out")
_WORDS: tuple[str, ...]
_WORDS = ("0,1", "0,,1", "a=b", "=4", "x=9", "lm_head=3", "threshold:", "threshold:nan", "fixed:-1")
_WORDS += (
    "fixed:" + "9" * 5000,
    "auto",
    "prefix",
    "lagged",
    "full:1",
    '{"1": NaN}',
    '{"a": 1}',
)
_WORDS += (
    '{"1": 1e999}',
    '{"99999999999": 1}',
    "[1]",
    "{",
    "true",
    '{"type": "string"}',
    "[" * 9999,
)


def damage(rng: Random, arguments: list[str], parser: argparse.ArgumentParser | None) -> str:
    """Change the arguments in place once or twice; returns the changes in words."""
    return "; ".join(_edit(rng, arguments, parser) for _ in range(rng.choice((1, 1, 2))))


def _edit(rng: Random, arguments: list[str], parser: argparse.ArgumentParser | None) -> str:
    kind = rng.random()
    if parser is not None and kind < 0.75:
        actions = [a for a in parser._actions if a.dest not in _NEVER and a.option_strings]
        return _flag(rng, arguments, rng.choice(actions))
    loose = [i for i, text in enumerate(arguments) if i and not _is_kept(arguments, i)]
    if loose and kind < 0.85:
        return f"without {arguments.pop(rng.choice(loose))!r}"
    if loose and kind < 0.93:
        at = rng.choice(loose)
        old, arguments[at] = arguments[at], _word(rng)
        return f"{odd.shown(arguments[at])} for {old!r}"
    arguments.append(
        rng.choice((_word(rng), "--", "--no-such-flag", "-", "--json", "@prompts.jsonl"))
    )
    return f"then {odd.shown(arguments[-1])}"


def _is_kept(arguments: list[str], at: int) -> bool:
    return bool(_KEPT & {arguments[at], arguments[at - 1]})


def _flag(rng: Random, arguments: list[str], action: argparse.Action) -> str:
    """Give a flag, again perhaps, with values that it may not take."""
    name = rng.choice(action.option_strings)
    if action.nargs == 0:
        arguments.append(name)
        return f"with {name}"
    values = [_value(rng, action) for _ in range(rng.choice((1, 1, 1, 0, 2)))]
    if values and values[0].startswith("-"):
        arguments.append(f"{name}={values[0]}")
    else:
        arguments += [name, *values]
    return f"{name} {odd.shown(values)}"


def _value(rng: Random, action: argparse.Action) -> str:
    if action.choices and rng.random() < 0.6:
        return str(rng.choice(list(action.choices)))
    if action.type in (int, float) and rng.random() < 0.8:
        number = rng.choice(odd.NUMBERS)
        if action.dest in _WORK:
            number = min(number, 3) if isinstance(number, int) else number
        elif rng.random() < 0.4 and isinstance(action.default, int | float):
            number = odd.near(rng, action.default)
        return str(int(number) if action.type is int and isinstance(number, bool) else number)
    return _word(rng)


def _word(rng: Random) -> str:
    """Any text that a shell can pass on."""
    text = rng.choice((*_PLACES, *_WORDS, *odd.STRINGS))
    return text.replace("\0", "").replace("\ud800", "\udc80").replace("../../etc/passwd", "gone")
