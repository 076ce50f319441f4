"""Reading a folder of safetensors: every shard checked whole before a tensor is used."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
from safetensors import SafetensorError, safe_open

from .errors import InputError

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "*.tiktoken")


def check_tokenizer(folder: Path) -> None:
    """Refuse a folder without a tokenizer, for which transformers would make an empty one up.

    Raises:
        InputError: none of the files that hold a vocabulary is there.
    """
    if not any(file for pattern in _TOKENIZERS for file in folder.glob(pattern)):
        raise InputError(folder, "no tokenizer", f"one of {', '.join(_TOKENIZERS)}")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a checkpoint folder, in order of their names.

    Raises:
        InputError: no such folder, or none in it; pickled weights are named, never read.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise InputError(folder, found, "a checkpoint folder")
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    if not files:
        names = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
        found = f"pickled weights only ({', '.join(names)})" if names else "no weights"
        raise InputError(folder, found, "*.safetensors", "Pickles can run code; none is read.")
    return files


def tensor_names(folder: Path) -> dict[str, Path]:
    """Tensor name to the file that holds it; every file's header and length are checked.

    Raises:
        InputError: a file is cut off or not safetensors, or two files hold the same name.
    """
    names: dict[str, Path] = {}
    for path in weight_files(folder):
        try:
            # The header's own check compares the declared sizes with the file's length.
            with safe_open(str(path), framework="numpy") as file:
                keys = list(file.keys())
        except (SafetensorError, OSError) as error:
            size = path.stat().st_size
            raise InputError(path, f"{size} bytes ({error})", "a whole safetensors file") from error
        for key in keys:
            if key in names:
                raise InputError(path, f"{key}, also in {names[key].name}", "each tensor once")
            names[key] = path
    return names


def read_tensors(folder: Path) -> dict[str, mx.array]:
    """All tensors of a folder, loaded lazily.

    Raises:
        InputError: see `weight_files` and `tensor_names`.
    """
    tensors: dict[str, mx.array] = {}
    for path in dict.fromkeys(tensor_names(folder).values()):
        loaded = mx.load(str(path))
        assert isinstance(loaded, dict)
        tensors.update(loaded)
    return tensors
