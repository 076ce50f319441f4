"""The table of request settings: every setting is a dataclass field that says what it means.

`setting` declares such a field, `settings_of` reads a class's fields back. The commands' flags, the
docstrings of `Decoder.stream` and `Decoder.rounds`, and docs/settings.md are made of what is read.
"""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

_KEY = "setting"
_WIDTH = 96

Documented = TypeVar("Documented", bound=Callable[..., Any])


@dataclass(frozen=True)
class Flag:
    """A command's flag for a setting.

    Attributes:
        name: the flag, as "--top-p".
        short: a one-letter form of it, as "-m"; empty where there is none.
        metavar: what --help shows for the value; empty for argparse's choice.
        form: how the value is written on a command line, where that is not how Python writes it.
        command: the one command that has the flag; empty where all that generate text have it.
    """

    name: str
    short: str = ""
    metavar: str = ""
    form: str = ""
    command: str = ""

    @property
    def argument(self) -> str:
        """Name of the attribute that argparse stores the value under."""
        return self.name.lstrip("-").replace("-", "_")


@dataclass(frozen=True)
class Setting:
    """One request setting: a row of the table.

    Attributes:
        name: of the keyword argument and of the dataclass field.
        type: the annotation, as the source writes it.
        default: its value where the request does not say.
        meaning: one sentence, without its capital letter and full stop.
        flag: the commands' flag for it; None where they have none.
        mlx_lm: the flag or the keyword argument that mlx-lm has for the same; empty without one.
        choices: the values that are allowed, where they can be listed.
    """

    name: str
    type: str
    default: Any
    meaning: str
    flag: Flag | None
    mlx_lm: str
    choices: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The meaning with its capital letter and full stop."""
        return f"{self.meaning[0].upper()}{self.meaning[1:]}."


def setting(
    default: Any,
    meaning: str,
    *,
    flag: str | Flag | None = None,
    mlx_lm: str = "",
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field with its row of the table.

    Args:
        default, meaning, mlx_lm, choices: see `Setting`.
        flag: see `Setting`; a string is the flag's name.
    """
    row = {
        "meaning": meaning,
        "flag": Flag(flag) if isinstance(flag, str) else flag,
        "mlx_lm": mlx_lm,
        "choices": choices,
    }
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata={_KEY: row})
    return dataclasses.field(default=default, metadata={_KEY: row})


def settings_of(owner: type) -> dict[str, Setting]:
    """The settings that a dataclass declares, by name, in its order."""
    found = {}
    for field in dataclasses.fields(owner):
        if _KEY in field.metadata:
            factory = field.default_factory
            default = field.default if factory is dataclasses.MISSING else factory()
            row = field.metadata[_KEY]
            found[field.name] = Setting(field.name, str(field.type), default, **row)
    return found


def with_settings(heading: str, settings: Iterable[Setting]) -> Callable[[Documented], Documented]:
    """A decorator that appends the meaning of settings to a docstring.

    Args:
        heading: of the section that they stand in.
        settings: in the order in which they are listed.
    """
    section = "\n".join([f"{heading}:", *map(_entry, settings)])

    def document(what: Documented) -> Documented:
        # Python drops docstrings under -OO; what the settings mean is still said there.
        what.__doc__ = f"{inspect.cleandoc(what.__doc__ or '')}\n\n{section}\n".lstrip()
        return what

    return document


def _entry(row: Setting) -> str:
    text = f"{row.name} ({row.type}, default {row.default!r}): {row.sentence}"
    return textwrap.fill(text, _WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 8)
