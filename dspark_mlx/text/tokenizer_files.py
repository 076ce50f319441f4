"""The files that a tokenizer is read from: found, checked for code, and set apart to be read.

transformers and mlx-lm read whatever stands in a folder: they import modules that a file names,
take the model's config.json at its word and stumble over a byte order mark. They are therefore
given another folder, with links to the tokenizer's files alone and a config.json that says no more
than which model it is.
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
_MODELS_OWN = ("config.json", "generation_config.json")
# Of config.json: what decides which tokenizer class it is.
_PRESERVED = {"model_type": str, "architectures": list, "tokenizer_class": str}
_CONFIG = "tokenizer_config.json"
# Keys whose value is the name of a module of mlx-lm that it imports.
_MODULES = {"chat_template_type": mlx_lm.chat_templates, "tool_parser_type": mlx_lm.tool_parsers}


def has_tokenizer(folder: Path) -> bool:
    """Whether a file that holds a vocabulary is in the folder."""
    if not folder.is_dir():
        return False
    names = [path.name for path in folder.iterdir()]
    return any(Path(name).match(pattern) for pattern in _VOCABULARIES for name in names)


def check_tokenizer(folder: Path) -> None:
    """Refuse a folder without a tokenizer, for which transformers would make an empty one up, and
    one whose tokenizer is code of its own.

    Raises:
        InputError: it names the folder and the files, or the file and the key.
    """
    if not has_tokenizer(folder):
        raise InputError(folder, "no tokenizer", f"one of {', '.join(_VOCABULARIES)}")
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
    """Whether transformers has the class; then a checkpoint's own one is not needed."""
    return isinstance(name, str) and tokenizer_class_from_name(name) is not None


@contextlib.contextmanager
def set_apart(folder: Path) -> Iterator[Path]:
    """A temporary folder with a tokenizer's files, and nothing else of a checkpoint's.

    Args:
        folder: the checkpoint's.

    Raises:
        InputError: no readable tokenizer files, or no room for links to them.
    """
    with tempfile.TemporaryDirectory(prefix="dspark-tokenizer-") as name:
        apart = Path(name)
        try:
            for path in sorted(folder.iterdir()):
                if path.is_dir() and path.name == "additional_chat_templates":
                    (apart / path.name).symlink_to(path.resolve())
                elif path.suffix in _SUFFIXES and path.name not in _MODELS_OWN and path.is_file():
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
    """Name the tokenizer's file that is no JSON, where one is.

    Raises:
        InputError: the first such file.
    """
    for name in (_CONFIG, "tokenizer.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).exists():
            read_json(folder / name)
