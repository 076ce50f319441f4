"""Finds a tokenizer's files, checks them for code, and puts them into a folder of their own.

transformers and mlx-lm read whatever is in a folder: they import modules that a file names, trust
the model's config.json and fail on a byte order mark. They are therefore given a temporary folder
with links to the tokenizer's files only, and a config.json that names the model and nothing else.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import pkgutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx_lm.chat_templates
import mlx_lm.tool_parsers
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from ..errors import InputError
from ..numbers import shown
from ..system.files import read_json

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json", "*.tiktoken")
_SUFFIXES = (".json", ".jsonl", ".txt", ".model", ".tiktoken", ".jinja", ".bpe")
_MODEL_FILES = ("config.json", "generation_config.json")
# The keys of config.json that decide which tokenizer class is used.
_PRESERVED = {"model_type": str, "architectures": list, "tokenizer_class": str}
_CONFIG = "tokenizer_config.json"
# Keys whose value is the name of a module that mlx-lm imports, and where those modules are.
_MODULES = {"chat_template_type": mlx_lm.chat_templates, "tool_parser_type": mlx_lm.tool_parsers}


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder has a file with a vocabulary."""
    if not folder.is_dir():
        return False
    names = [path.name for path in folder.iterdir()]
    return any(Path(name).match(pattern) for pattern in _VOCABULARIES for name in names)


def check_tokenizer(folder: Path) -> None:
    """Refuse a folder without a tokenizer, or with one that needs code from the folder.

    transformers would make an empty tokenizer for a folder that has none.

    Raises:
        InputError: the folder is refused; the message names the files, or the file and the key.
    """
    if not has_tokenizer(folder):
        hint = "Token ids need none (generate --prompt-ids)."
        raise InputError(folder, "no tokenizer", f"one of {', '.join(_VOCABULARIES)}", hint)
    path = folder / _CONFIG
    config = read_json(path) if path.exists() else {}
    if config.get("auto_map") is not None and not _is_known(config.get("tokenizer_class")):
        found = f'"auto_map": {shown(config["auto_map"])}, code of its own'
        hint = "Code from a checkpoint is never run."
        raise InputError(path, found, "a tokenizer that transformers implements", hint)
    for key, package in _MODULES.items():
        known = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
        if config.get(key) not in (None, *known):
            found = f'"{key}": {shown(config[key])}'
            raise InputError(path, found, f"one of mlx-lm's: {', '.join(known)}")


def _is_known(name: object) -> bool:
    """Whether transformers has a class of that name, which needs no code of the checkpoint."""
    return isinstance(name, str) and tokenizer_class_from_name(name) is not None


@contextlib.contextmanager
def set_apart(folder: Path) -> Iterator[Path]:
    """A temporary folder with a checkpoint's tokenizer files and nothing else.

    Args:
        folder: the checkpoint's folder.

    Raises:
        InputError: the files cannot be read, or links to them cannot be made.
    """
    with tempfile.TemporaryDirectory(prefix="dspark-tokenizer-") as name:
        apart = Path(name)
        try:
            for path in sorted(folder.iterdir()):
                if path.is_dir() and path.name == "additional_chat_templates":
                    (apart / path.name).symlink_to(path.resolve())
                elif path.suffix in _SUFFIXES and path.name not in _MODEL_FILES and path.is_file():
                    _put(path, apart / path.name)
        except OSError as error:
            found = f"files that cannot be read or linked ({error.strerror})"
            raise InputError(folder, found, "readable tokenizer files") from error
        (apart / "config.json").write_text(json.dumps(_model(folder / "config.json")))
        yield apart


def _put(path: Path, copy: Path) -> None:
    mark = codecs.BOM_UTF8
    if path.suffix in (".json", ".jinja"):
        with path.open("rb") as file:
            if file.read(len(mark)) == mark:
                copy.write_bytes(file.read())
                return
    copy.symlink_to(path.resolve())


def _model(path: Path) -> dict[str, Any]:
    config = read_json(path) if path.exists() else {}
    return {
        key: config[key] for key, kind in _PRESERVED.items() if isinstance(config.get(key), kind)
    }


def blame(folder: Path) -> None:
    """Raise an error that names the tokenizer's broken JSON file, if it has one.

    Raises:
        InputError: a file is not JSON; the first one is named.
    """
    for name in (_CONFIG, "tokenizer.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).exists():
            read_json(folder / name)
