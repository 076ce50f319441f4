"""A path or Hub id to a place on disk; files with executable code are never fetched."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, errors, hf_hub_download, snapshot_download
from huggingface_hub.utils import validate_repo_id

from ..errors import InputError
from ..system.staging import restored
from ..system.strict_json import check_text
from ..system.system_errors import from_system

_HUB_ID = re.compile(
    r"(?P<name>[\w.-]+/[\w.-]+)(/(?P<file>[\w./-]+\.(?i:gguf)))?(@(?P<revision>[\w./-]+))?",
    re.ASCII,
)
# All of huggingface-hub's own, whatever its version calls them, and what it lets through of the
# network's libraries: proxies and answers that make no sense.
_OWN = (e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception))
_FAILURES: tuple[type[Exception], ...] = (*_OWN, OSError, ValueError, RuntimeError, ImportError)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
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
    match = _find(name)
    if isinstance(match, Path):
        return match
    repo, revision = match["name"], match["revision"]
    with _asking(name):
        if match["file"]:
            return Path(hf_hub_download(repo, match["file"], revision=revision))
        folder = snapshot_download(
            repo,
            repo_type="dataset" if dataset else "model",
            revision=revision,
            allow_patterns=_DATASET_FILES if dataset else _FILES,
            ignore_patterns=None if dataset else _OTHERS,
        )
    return Path(folder)


def find_config(name: str | Path) -> Path | None:
    """The config.json of what `resolve` takes, before anything large is fetched.

    Returns:
        None where it has none, as beside GGUF files.

    Raises:
        InputError: neither a path nor an id, or the Hub does not give it.
    """
    match = _find(name)
    if isinstance(match, Path):
        return match / "config.json" if os.path.isfile(match / "config.json") else None
    if match["file"]:
        return None
    with _asking(name):
        try:
            return Path(hf_hub_download(match["name"], "config.json", revision=match["revision"]))
        except errors.EntryNotFoundError as error:
            if isinstance(error, errors.LocalEntryNotFoundError):
                raise
            return None


def hub_name(name: str | Path) -> str:
    """The owner/name of a Hub id, and "" for a path that exists and for anything else."""
    match = _hub_id(name)
    return match["name"] if match and _existing(name) is None else ""


def _find(name: str | Path) -> Path | re.Match[str]:
    """The path, or the parts of the id, that a name is.

    Raises:
        InputError: neither; or see `_existing`.
    """
    if (found := _existing(name) or _hub_id(name)) is None:
        raise InputError(name, "no such file or folder", "a path, or a Hub id like owner/name")
    return found


def _existing(name: str | Path) -> Path | None:
    """The path of that name, None where there is none.

    Raises:
        InputError: no name, a link to nothing, or a place that this user may not look at.
    """
    check_text(str(name), "path")
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
    """A name as an id of the Hub; None for what only a path is written like."""
    match = _HUB_ID.fullmatch(str(name))
    if match is None or not {"", ".", ".."}.isdisjoint((match["file"] or "file").split("/")):
        return None
    try:
        validate_repo_id(match["name"])
    except errors.HFValidationError:
        return None
    return match


@contextmanager
def _asking(name: str | Path) -> Iterator[None]:
    """Say in one line why the Hub, the network or the disk did not give what was asked for."""
    if constants.HF_HUB_CACHE.startswith("~"):
        hint = "Set HF_HOME to a folder that can be written to."
        raise InputError(name, "a user without a home folder for downloads", "one", hint)
    try:
        yield
    except errors.LocalEntryNotFoundError as error:
        hint = "Check the network, or download it elsewhere and pass the folder."
        found = "not all of it on disk, and the Hub cannot be reached"
        raise InputError(name, found, "a repository of the Hub", hint) from error
    except _FAILURES as error:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise from_system(error, Path(error.filename or constants.HF_HUB_CACHE)) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        found = f"no such path, and from the Hub: {reason}"
        raise InputError(name, found, "a path, or an id of the Hub that you may read") from error


def checkpoint_place(path: Path) -> Path:
    """The GGUF file or the folder with a config.json that an existing path means.

    Raises:
        InputError: a file of another kind, or a folder with neither or with several GGUF files.
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
    """Whether a file's name ends as a GGUF file's."""
    return path.suffix.lower() == ".gguf"
