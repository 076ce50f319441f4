"""Files: the user's cache folder, outputs that appear whole or not at all, hashes, strict JSON."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import InputError


def cache_folder() -> Path:
    """The user's cache folder of this project (the XDG base directory), not created yet."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dspark_mlx"


@contextlib.contextmanager
def staged_folder(final: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `final` that takes its name when the block succeeds.

    Nothing half-written stays behind: on any exception, Ctrl-C included, the temporary folder is
    removed and `final` is as it was.

    Raises:
        InputError: `final` exists and is not an empty folder (unless `overwrite`), or its parent
            cannot be written.
    """
    if final.exists() and not overwrite and (not final.is_dir() or any(final.iterdir())):
        raise InputError(
            final, "an existing file or non-empty folder", "a path that is free", "Choose another."
        )
    staged = final.parent / f".{final.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        staged.mkdir(parents=True)
    except OSError as error:
        raise InputError(final, f"no way to write there ({error})", "a writable folder") from error
    try:
        yield staged
        _replace(staged, final)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def check_apart(source: Path, destination: Path) -> None:
    """Refuse to put an output in the place of its source, which would be gone with what was there.

    Raises:
        InputError: `destination` is `source` or a folder around it.
    """
    if destination.resolve() in (source.resolve(), *source.resolve().parents):
        raise InputError(destination, "the source, or a folder around it", "another folder")


def _replace(staged: Path, final: Path) -> None:
    old = staged.with_suffix(".old")
    if final.exists():
        final.rename(old)
    try:
        staged.rename(final)
    except OSError:
        if old.exists():
            old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        staged.write_text(text, encoding="utf-8")
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Write `data` to `path` atomically, indented, with a final newline."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_json_lines(path: Path, what: str, one: str) -> list[tuple[str, Any]]:
    """Every line's value, with what names the line in errors.

    Args:
        path: of the file.
        what, one: the file's content and a line of it, for messages.

    Raises:
        InputError: no readable file, no lines, or a line that is not JSON.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(path, f"no readable file ({error.strerror})", what) from error
    except UnicodeDecodeError as error:
        raise InputError(path, "bytes that are not text", "JSON lines in UTF-8") from error
    if not lines:
        raise InputError(path, "no lines", f"at least one {one}")
    return [_read_line(f"{path}:{number}", line) for number, line in enumerate(lines, 1)]


def _read_line(where: str, line: str) -> tuple[str, Any]:
    try:
        return where, json.loads(line)
    except ValueError as error:
        raise InputError(where, f"no JSON ({error})", "a JSON object") from error


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """The list of JSON objects in a data file of this package."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(entries, list)
    return entries


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        InputError: the file is missing, cut off, not JSON, or not an object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(path, f"no readable file ({error.strerror})", "a JSON file") from error
    except ValueError as error:
        raise InputError(path, f"text that is not JSON ({error})", "a JSON object") from error
    if not isinstance(data, dict):
        raise InputError(path, f"a JSON {type(data).__name__}", "a JSON object")
    return data


def untagged(where: Path | str, data: Mapping[str, Any], form: str, version: int) -> dict[str, Any]:
    """One of this package's JSON objects without its "format" and "format_version".

    Args:
        where: names it in errors. data: the object.
        form, version: what it has to say.

    Raises:
        InputError: it says another format or version, or none.
    """
    values = dict(data)
    found = (values.pop("format", None), values.pop("format_version", None))
    if found != (form, version):
        raise InputError(where, f"format {found}", f"{(form, version)}")
    return values


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
