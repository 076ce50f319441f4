"""A path or Hub id to a place on disk; files with executable code are never fetched."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from .errors import InputError

_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_FILES = [
    "*.json",
    "*.txt",
    "*.jinja",
    "*.tiktoken",
    "tokenizer.model",
    "*.safetensors",
]


def resolve(name: str | Path) -> Path:
    """An existing path as it is; a Hub id, owner/name or owner/name@revision, downloaded.

    Downloads resume, show progress and are kept in huggingface-hub's cache, which also serves them
    without a network.

    Raises:
        InputError: neither a path nor an id, or the Hub does not give it.
    """
    path = Path(name)
    if path.exists():
        return path
    match = _HUB_ID.fullmatch(str(name))
    if not match:
        raise InputError(name, "no such file or folder", "a path, or a Hub id like owner/name")
    try:
        folder = snapshot_download(match["name"], revision=match["revision"], allow_patterns=_FILES)
    except LocalEntryNotFoundError as error:
        hint = "Check the network, or download it elsewhere and pass the folder."
        found = "nothing on disk, and the Hub cannot be reached"
        raise InputError(name, found, "a repository of the Hub", hint) from error
    except (HfHubHTTPError, OSError) as error:
        found = f"no such path, and from the Hub: {str(error).splitlines()[0]}"
        raise InputError(name, found, "a path, or an id of the Hub that you may read") from error
    return Path(folder)


def checkpoint_place(path: Path) -> Path:
    """The GGUF file or the folder with a config.json that an existing path means.

    Raises:
        InputError: a file of another kind, or a folder with neither or with several GGUF files.
    """
    if path.is_file() and path.suffix != ".gguf":
        raise InputError(path, f"a {path.suffix or 'nameless'} file", "a folder or a .gguf file")
    if path.is_file() or (path / "config.json").exists():
        return path
    files = sorted(path.glob("*.gguf"))
    if len(files) != 1:
        found = f"no config.json and {len(files)} .gguf files"
        raise InputError(path, found, "a Hugging Face checkpoint or exactly one .gguf file")
    return files[0]
