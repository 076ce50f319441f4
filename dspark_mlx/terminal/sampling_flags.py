"""The commands' flags for sampling, under mlx-lm's names where it has them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..caches.settings import CACHE_SETTINGS
from ..decoder import Decoder
from ..engine.request import SETTINGS
from ..errors import InputError
from ..sampling.setting_table import Setting, settings_of
from ..sampling.settings import Sampling
from ..system.files import read_text
from ..system.strict_json import parse_json

_PARSE = {
    "int": int,
    "float": float,
    "str": str,
    "Mapping[int, float]": str,
    "Mapping[str, Any]": str,
}
# A flag that is given once for each element.
_ELEMENT = {
    "Collection[int]": int,
    "tuple[str, ...]": str,
    "Sequence[str | Sequence[int]]": str,
}


def add_setting_flag(parser: argparse._ActionsContainer, name: str) -> None:
    """Add the flag of one setting, as the table of settings has it.

    Args:
        parser: an argparse parser or group, changed in place.
        name: of a setting of a request or of the caches that has a flag.
    """
    row = (SETTINGS | CACHE_SETTINGS)[name]
    assert row.flag is not None
    options: dict[str, Any] = {"help": _help(row)}
    kind = row.type.removesuffix(" | None")
    if row.type == "bool | None":
        options["action"] = argparse.BooleanOptionalAction
    elif kind == "bool" and row.default:
        options |= {"action": argparse.BooleanOptionalAction, "default": True}
    elif kind == "bool":
        options["action"] = "store_true"
    elif kind in _ELEMENT:
        options |= {"action": "append", "default": [], "type": _ELEMENT[kind]}
    else:
        options |= {"default": row.default if _is_plain(row) else None, "type": _PARSE[kind]}
    if row.choices:
        options["choices"] = row.choices
    if row.flag.metavar:
        options["metavar"] = row.flag.metavar
    parser.add_argument(*filter(None, (row.flag.name, row.flag.short)), **options)


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every sampling setting: --temp, --top-p and so on to --seed."""
    group = parser.add_argument_group("sampling, exactly the target's")
    for row in _sampling_rows():
        add_setting_flag(group, row.name)


def sampling_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The parsed flags as `request.Settings`.

    Raises:
        InputError: a bias that is not JSON.
    """
    return {row.name: setting_of(args, row.name) for row in _sampling_rows()}


def setting_of(args: argparse.Namespace, name: str) -> Any:
    """The value of one setting, as its parsed flag has it.

    Raises:
        InputError: a bias that is not JSON, or a reference that is no text file.
    """
    row = SETTINGS[name]
    assert row.flag is not None
    value = getattr(args, row.flag.argument)
    if name == "logit_bias":
        return _bias(value)
    if name == "chat_template_kwargs":
        return _variables(value)
    if name == "reference":
        return tuple(read_text(Path(path), "a text file") for path in value)
    return tuple(value) if isinstance(value, list) else value


def _sampling_rows() -> list[Setting]:
    """Sampling settings whose flag every command that generates text has."""
    return [row for row in settings_of(Sampling).values() if row.flag and not row.flag.command]


def _is_plain(row: Setting) -> bool:
    """Whether the default is a number or a word, which a command line can show."""
    return isinstance(row.default, int | float | str) and not isinstance(row.default, bool)


def _help(row: Setting) -> str:
    assert row.flag is not None
    notes = [row.flag.form] if row.flag.form else []
    if _is_plain(row):
        shown = f"{row.default:g}" if isinstance(row.default, float) else row.default
        notes.append(f"default: {shown}")
    note = f" ({'; '.join(notes)})" if notes else ""
    return (row.meaning + note).replace("%", "%%")


def with_special_tokens(settings: dict[str, Any], decoder: Decoder) -> dict[str, Any]:
    """The settings with the tokens that XTC never drops: the line break and the stop tokens.

    mlx-lm's own commands choose the same.
    """
    if not settings["xtc_probability"]:
        return settings
    lines = decoder.tokenizer.encode("\n", add_special_tokens=False)
    ends = settings.get("stop_tokens", decoder.stop_tokens)
    return {**settings, "xtc_special_tokens": tuple(sorted({*ends, *lines}))}


def read_json_argument(flag: str, text: str) -> Any:
    """The value of JSON in `text`, or in the file that `text` names.

    Raises:
        InputError: it is neither.
    """
    expected = "JSON, or a file of it"
    if text.lstrip().startswith(("{", "[", "true")):
        return parse_json(text, flag, expected)
    path = Path(text)
    return parse_json(read_text(path, expected), path, expected)


def _variables(text: str | None) -> dict[str, Any]:
    found = {} if text is None else read_json_argument("--chat-template-config", text)
    if not isinstance(found, dict):
        raise InputError("--chat-template-config", str(text)[:60], "an object of JSON")
    return found


def _bias(text: str | None) -> dict[int, float]:
    if text is None:
        return {}
    found = read_json_argument("--logit-bias", text)
    if not isinstance(found, dict):
        raise InputError("--logit-bias", text[:60], "an object of token ids with numbers")
    try:
        return {int(token): bias for token, bias in found.items()}
    except ValueError as error:
        raise InputError("--logit-bias", text[:60], "token ids as keys") from error
