"""Reads the end tokens of a checkpoint: all ids that any of its files names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..numbers import plain, shown
from ..system.files import read_json


def end_tokens(folder: Path, config: Mapping[str, Any], vocabulary: int) -> frozenset[int]:
    """The union of the end tokens of config.json, of its text part and of generation_config.json.

    Args:
        folder: the checkpoint's folder.
        config: its config.json, as the model was loaded with it.
        vocabulary: size of the target's vocabulary.

    Raises:
        InputError: an id is not a token of the target; the message names the file.
    """
    ids = _ids(folder / "config.json", config, vocabulary)
    # mlx-lm replaces config.json's end tokens with generation_config.json's, so both are read.
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            ids |= _ids(folder / name, read_json(folder / name), vocabulary)
    return frozenset(ids)


def _ids(path: Path, config: Mapping[str, Any], vocabulary: int) -> set[int]:
    named: set[int] = set()
    for part in (config, config.get("text_config")):
        value = part.get("eos_token_id") if isinstance(part, Mapping) else None
        for each in value if isinstance(value, list | tuple | set | frozenset) else [value]:
            if each is not None:
                named.add(_id(path, each, vocabulary))
    # Some files write -1 for no end token.
    return named - {-1}


def _id(path: Path, value: Any, vocabulary: int) -> int:
    token = plain(value)
    if isinstance(token, str) and token.strip().isdecimal() and len(token) < 20:
        token = int(token)
    if isinstance(token, float) and token.is_integer():
        token = int(token)
    if isinstance(token, bool) or not isinstance(token, int) or not -1 <= token < vocabulary:
        found = f'"eos_token_id": {shown(value)}'
        raise InputError(path, found, f"token ids from 0 to {vocabulary - 1}")
    return token
