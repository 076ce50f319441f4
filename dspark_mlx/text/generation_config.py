"""Reads the sampling settings that a checkpoint's generation_config.json recommends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError
from ..numbers import plain, shown
from ..system.files import read_json

_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_FILE = "generation_config.json"


def generation_defaults(folder: Path) -> dict[str, Any]:
    """The settings of the file under this package's names; empty without the file.

    A file with `"do_sample": false` means greedy decoding, and one with `true` and no temperature
    means 1, as transformers reads them.

    Args:
        folder: the checkpoint's folder.

    Raises:
        InputError: the file is not JSON, or a setting is no number; the message names both.
    """
    path = folder / _FILE
    if not path.is_file():
        return {}
    config = read_json(path)
    found = {name: plain(config[name]) for name in _NAMES if config.get(name) is not None}
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(path, f'"{name}": {shown(value)}', "a number")
    if config.get("do_sample") is True:
        return {"temperature": 1.0, **found}
    if config.get("do_sample") is False:
        return {name: value for name, value in found.items() if name == "repetition_penalty"}
    return found
