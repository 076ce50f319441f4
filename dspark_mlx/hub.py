"""A path or Hub id to a place on disk; files with executable code are never fetched."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

from .errors import InputError

_HUB_ID = re.compile(
    r"(?P<name>[\w.-]+/[\w.-]+)(/(?P<file>[\w./-]+\.gguf))?(@(?P<revision>[\w./-]+))?"
)
_FILES = [
    "*.json",
    "*.txt",
    "*.jinja",
    "*.tiktoken",
    "tokenizer.model",
    "*.safetensors",
    "README.md",  # states the licence
]
_DATASET_FILES = ["*.jsonl"]
# Other forms of the same weights: in folders, and Mistral's own beside Hugging Face's.
_OTHERS = ["*/*", "consolidated*.safetensors"]


def resolve(name: str | Path, *, dataset: bool = False) -> Path:
    """An existing path as it is; of the Hub, owner/name or one file of it, downloaded.

    A repository's GGUF files are alternatives, so one is named: owner/name/FILE.gguf. Either may
    end in @revision. Downloads show progress and are kept in huggingface-hub's cache, which also
    serves them without a network. A connection that breaks is taken up where it broke; after an
    end, whole files are not fetched again.

    Args:
        name: see above.
        dataset: an id names a dataset, whose JSON lines are fetched, instead of a model.

    Raises:
        InputError: neither a path nor an id, or the Hub does not give it.
    """
    path = Path(name)
    if path.exists():
        return path
    match = _HUB_ID.fullmatch(str(name))
    if not match:
        raise InputError(name, "no such file or folder", "a path, or a Hub id like owner/name")
    repo, revision = match["name"], match["revision"]
    try:
        if match["file"]:
            return Path(hf_hub_download(repo, match["file"], revision=revision))
        folder = snapshot_download(
            repo,
            repo_type="dataset" if dataset else "model",
            revision=revision,
            allow_patterns=_DATASET_FILES if dataset else _FILES,
            ignore_patterns=None if dataset else _OTHERS,
        )
    except LocalEntryNotFoundError as error:
        hint = "Check the network, or download it elsewhere and pass the folder."
        found = "not all of it on disk, and the Hub cannot be reached"
        raise InputError(name, found, "a repository of the Hub", hint) from error
    except (HTTPError, OSError) as error:
        found = f"no such path, and from the Hub: {str(error).splitlines()[0]}"
        raise InputError(name, found, "a path, or an id of the Hub that you may read") from error
    return Path(folder)


def hub_name(name: str | Path) -> str:
    """The owner/name of a Hub id, and "" for a path that exists and for anything else."""
    match = _HUB_ID.fullmatch(str(name))
    return match["name"] if match and not Path(name).exists() else ""


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
        hint = "Name a GGUF file itself; of the Hub's, as owner/name/FILE.gguf."
        raise InputError(path, found, "a Hugging Face checkpoint or exactly one .gguf file", hint)
    return files[0]
