"""Finding a path or Hub id on disk, downloading it where needed; never files with code."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import (
    constants,
    errors,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.utils import validate_repo_id

from ..errors import InputError
from ..numbers import shown
from ..system.files import read_json
from ..system.staging import restored
from ..system.strict_json import check_text
from ..system.system_errors import from_system
from .safetensors import INDEX

_HUB_ID = re.compile(
    r"(?P<name>[\w.-]+/[\w.-]+)(/(?P<file>[\w./-]+\.(?i:gguf)))?(@(?P<revision>[\w./-]+))?",
    re.ASCII,
)
# huggingface-hub's own exceptions are listed here whatever its version names them. The others come
# from its network libraries, for wrong proxies and broken answers.
_HUB_ERRORS = (e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception))
_FAILURES: tuple[type[Exception], ...] = (
    *_HUB_ERRORS,
    OSError,
    ValueError,
    RuntimeError,
    ImportError,
)
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
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
# Copies of the same weights in another form: those in subfolders, and Mistral's own format.
_COPIES = ["*/*", "consolidated*.safetensors"]


def resolve(name: str | Path, *, dataset: bool = False) -> Path:
    """The path on disk of a file, a folder or a Hub id; what the Hub has is downloaded.

    A repository's GGUF files are alternatives, so the id names one: owner/name/FILE.gguf. An id may
    end in @revision. Downloads show progress and stay in huggingface-hub's cache, which also
    answers without a network. An interrupted download goes on where it stopped, and files that are
    complete are not fetched again.

    Args:
        name: a path, or an id: owner/name or owner/name/FILE.gguf, with or without @revision.
        dataset: True where an id names a dataset, of which the JSON lines are fetched; False where
            it names a model.

    Raises:
        InputError: `name` is neither a path nor an id, or the Hub does not give it.
    """
    match = _find(name)
    if isinstance(match, Path):
        return match
    repo, revision = match["name"], match["revision"]
    with _downloading(name):
        if match["file"]:
            return _file(match, match["file"])
        folder = snapshot_download(
            repo,
            repo_type="dataset" if dataset else "model",
            revision=revision,
            allow_patterns=_DATASET_FILES if dataset else _FILES,
            ignore_patterns=None if dataset else _COPIES,
        )
    return Path(folder)


def resolve_some(name: str | Path, wanted: Callable[[str], bool]) -> list[Path]:
    """The safetensors files that may hold tensors of wanted names; of the Hub's, no others.

    Args:
        name: see `resolve`.
        wanted: whether a tensor of that name is wanted.

    Raises:
        InputError: `name` is neither a folder nor an id, or the Hub does not give it.
    """
    match = _find(name)
    if isinstance(match, Path):
        if not match.is_dir():
            raise InputError(match, "a file", "a checkpoint folder, or a Hub id like owner/name")
        return sorted(match.glob("*.safetensors"))
    with _downloading(name):
        try:
            index = read_json(_file(match, INDEX)).get("weight_map", {})
        except errors.EntryNotFoundError as error:
            if isinstance(error, errors.LocalEntryNotFoundError):
                raise
            return [_file(match, "model.safetensors")]
        files = sorted({str(file) for tensor, file in index.items() if wanted(tensor)})
        return [_file(match, file) for file in files]


def find_config(name: str | Path) -> Path | None:
    """The path of a checkpoint's config.json, found before anything large is downloaded.

    Args:
        name: see `resolve`.

    Returns:
        None where the checkpoint has no config.json, as GGUF files have none.

    Raises:
        InputError: `name` is neither a path nor an id, or the Hub does not give it.
    """
    match = _find(name)
    if isinstance(match, Path):
        return match / "config.json" if os.path.isfile(match / "config.json") else None
    if match["file"]:
        return None
    with _downloading(name):
        try:
            return _file(match, "config.json")
        except errors.EntryNotFoundError as error:
            if isinstance(error, errors.LocalEntryNotFoundError):
                raise
            return None


def _file(match: re.Match[str], file: str) -> Path:
    """The path of one file of a repository, downloaded where it is not on disk."""
    repo, revision = match["name"], match["revision"]
    if not isinstance(try_to_load_from_cache(repo, file, revision=revision), str):
        # This finds out at once that the Hub cannot be reached. `hf_hub_download` would try again
        # for half a minute, with a warning for each try.
        snapshot_download(repo, revision=revision, allow_patterns=[file])
    return Path(hf_hub_download(repo, file, revision=revision))


def hub_name(name: str | Path) -> str:
    """The owner/name part of a Hub id; "" for an existing path and for anything else."""
    match = _hub_id(name)
    return match["name"] if match and _existing(name) is None else ""


def _find(name: str | Path) -> Path | re.Match[str]:
    """The existing path of that name, or the parts of a Hub id.

    Raises:
        InputError: `name` is neither; or see `_existing`.
    """
    if (found := _existing(name) or _hub_id(name)) is None:
        raise InputError(name, "no such file or folder", "a path, or a Hub id like owner/name")
    return found


def _existing(name: str | Path) -> Path | None:
    """The existing path of that name; None where there is none.

    Raises:
        InputError: the name is no text, is empty, is a link to nothing, or may not be read by this
            user.
    """
    if not isinstance(name, str | Path):
        raise InputError("path", shown(name), "a path, or a Hub id like owner/name")
    check_text("path", str(name))
    if not str(name):
        raise InputError("path", "no name", "a path, or a Hub id like owner/name")
    path = Path(os.path.expanduser(name))
    try:
        if path.exists() or restored(path):
            return path
        if path.is_symlink():
            raise InputError(name, f"a link to nothing, {os.readlink(path)}", "a link to a path")
    except OSError as error:
        raise from_system(error, path) from error
    return None


def _hub_id(name: str | Path) -> re.Match[str] | None:
    """The parts of a Hub id; None where the name can only be a path."""
    match = _HUB_ID.fullmatch(str(name))
    if match is None or not {"", ".", ".."}.isdisjoint((match["file"] or "file").split("/")):
        return None
    try:
        validate_repo_id(match["name"])
    except errors.HFValidationError:
        return None
    return match


@contextmanager
def _downloading(name: str | Path) -> Iterator[None]:
    """Turn the errors of the Hub, the network and the disk into an `InputError` of one line."""
    if constants.HF_HUB_CACHE.startswith("~"):
        hint = "Set HF_HOME to a folder that can be written to."
        found = "a user without a home folder for downloads"
        raise InputError(name, found, "a home folder", hint)
    try:
        yield
    except errors.LocalEntryNotFoundError as error:
        hint = "Check the network, or download it elsewhere and pass the folder."
        found = "not all of it on disk, and the Hub cannot be reached"
        raise InputError(name, found, "a repository of the Hub", hint) from error
    except _FAILURES as error:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise from_system(error, Path(error.filename or constants.HF_HUB_CACHE)) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        found = f"no such path, and from the Hub: {reason}"
        raise InputError(name, found, "a path, or an id of the Hub that you may read") from error


def checkpoint_place(path: Path) -> Path:
    """The checkpoint at an existing path: a folder with a config.json, or a GGUF file.

    A folder without config.json stands for the one GGUF file in it.

    Raises:
        InputError: the path is a file of another kind, or a folder that has no config.json and not
            exactly one GGUF file.
    """
    if not path.is_dir():
        if not path.is_file():
            raise InputError(path, "a pipe or device", "a folder or a .gguf file")
        if not is_gguf(path):
            raise InputError(path, f"a {path.suffix or 'nameless'} file", "a folder or .gguf file")
        return path
    try:
        names = os.listdir(path)
    except OSError as error:
        raise from_system(error, path) from error
    if "config.json" in names:
        return path
    files = sorted(path / name for name in names if is_gguf(Path(name)))
    if len(files) != 1:
        found = f"no config.json and {len(files)} .gguf files"
        hint = "Name a GGUF file itself; of the Hub's, as owner/name/FILE.gguf."
        raise InputError(path, found, "a Hugging Face checkpoint or exactly one .gguf file", hint)
    return files[0]


def is_gguf(path: Path) -> bool:
    """Whether a file's name ends in .gguf."""
    return path.suffix.lower() == ".gguf"
