"""Reading and writing files: the cache folder, atomic writes, hashes, strict JSON."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..numbers import shown
from .locks import take_turns
from .staging import restore, temporary
from .strict_json import decode, leaves, parse_json
from .system_errors import writing

DATA = Path(__file__).parent.parent / "data"
"""The package's data folder: prompts, profiles, the built-in drafter."""

_LARGEST_JSON = 100 << 20


def cache_folder() -> Path:
    """The path of this project's cache folder, which need not exist yet (XDG base directory).

    Raises:
        InputError: XDG_CACHE_HOME is not set, and the user has no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the specification says to ignore relative paths
        return Path(base) / "dspark_mlx"
    try:
        return Path.home() / ".cache" / "dspark_mlx"
    except RuntimeError as error:
        hint = "Set XDG_CACHE_HOME to a folder that can be written to."
        found = "a user without a home folder"
        raise InputError("cache folder", found, "a home folder", hint) from error


def folder_of(where: str, value: object) -> Path:
    """The path that a caller gave for a folder, which need not exist.

    Raises:
        InputError: it is no path, or the empty text, which would be the current folder.
    """
    if not isinstance(value, str | Path) or not str(value):
        raise InputError(where, shown(value), "the path of a folder")
    return Path(value)


def check_output(where: str, path: Path) -> None:
    """Refuse a path that no output file can be written to, before the work is done.

    Raises:
        InputError: the path is a folder, or its folder does not exist or takes no file.
    """
    if os.path.isdir(path):
        raise InputError(where, f"a folder, {path}", "a file to write")
    if not os.path.isdir(path.parent):
        raise InputError(where, f"no folder {path.parent}", "an existing folder")
    if not path.exists() or path.is_file():  # else a pipe or a device
        _check_takes_files(Path(os.path.realpath(path)).parent, path)


def check_folder(where: str, folder: Path) -> None:
    """Refuse a folder that no output file can be written to; it need not exist yet.

    Raises:
        InputError: there is a file, or the folder, or the one that it would be made in, takes no
            file.
    """
    there = next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))
    if not os.path.isdir(there):
        raise InputError(where, f"a file, {there}", "a folder")
    _check_takes_files(there, folder)


def _check_takes_files(folder: Path, asked: Path) -> None:
    with writing(asked):
        probe = temporary(folder / asked.name)
        probe.touch(exist_ok=False)
        probe.unlink()


def check_apart(source: Path, destination: Path) -> None:
    """Refuse an output folder that would replace its own source.

    Raises:
        InputError: `destination` is `source` or a folder around it.
    """
    place = Path(os.path.realpath(source))
    if Path(os.path.realpath(destination)) in (place, *place.parents):
        raise InputError(destination, "the source, or a folder around it", "another folder")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically in UTF-8, see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all; a pipe or device is written to directly.

    Raises:
        InputError: the disk is full, or the path cannot be written to.
    """
    with writing(path):
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        final = Path(os.path.realpath(path))
        with take_turns(final) as held:
            if held:
                restore(final)
            staged = temporary(final)
            try:
                staged.write_bytes(content)
                staged.replace(final)
            finally:
                staged.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Write `data` to `path` atomically, indented, with a final newline."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_json_lines(path: Path, what: str, one: str) -> list[tuple[str, Any]]:
    """The JSON value of every line of a file, each with its place "path:number" for errors.

    Only a line feed ends a line, because JSON's strings may hold Unicode's other line separators.
    Blank lines are skipped.

    Args:
        path: the file.
        what: name of the file's content, for messages.
        one: name of one line's content, for messages.

    Raises:
        InputError: the file cannot be read, has no lines, or has a line that is not JSON.
    """
    values = []
    for number, line in enumerate(_lines(path, what), 1):
        where = f"{path}:{number}"
        if text := decode(line, where, what).strip(" \t\r\n"):
            values.append((where, parse_json(text, where)))
    if not values:
        raise InputError(path, "no lines", f"at least one {one}")
    return values


def _lines(path: Path, what: str) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while line := file.readline(_LARGEST_JSON + 1):
                if len(line) > _LARGEST_JSON:
                    raise InputError(path, "a line without end", f"{what} of 100 MB at most")
                yield line
    except OSError as error:
        raise InputError(path, f"no readable file ({error.strerror})", what) from error


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """The list of JSON objects in one of this package's own data files, which is not checked."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(entries, list)
    return entries


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        InputError: the file is missing, cut off, larger than 100 MB, not JSON, or not an object.
    """
    try:
        kind = path.stat().st_mode
    except OSError as error:
        raise InputError(path, f"no readable file ({error.strerror})", "a JSON file") from error
    # Reading a pipe could wait forever. (Opening a folder already gives a clear error.)
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise InputError(path, "a pipe or device", "a JSON file")
    data = parse_json(read_text(path, "a JSON file"), path)
    if not isinstance(data, dict):
        raise InputError(path, f"a JSON {type(data).__name__}", "a JSON object")
    return data


def read_text(path: Path, expected: str) -> str:
    """The text of a file.

    Args:
        path: a file, or a pipe.
        expected: what the file should be, for messages.

    Raises:
        InputError: the file cannot be read, is larger than 100 MB, or holds bytes that are not
            text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_JSON + 1)
    except (OSError, ValueError) as error:
        found = f"no readable file ({getattr(error, 'strerror', error)})"
        raise InputError(path, found, expected) from error
    if len(content) > _LARGEST_JSON:
        raise InputError(path, "more than 100 MB", f"{expected} of 100 MB at most")
    return decode(content, path, expected)


def check_format(
    where: Path | str, data: Mapping[str, Any], form: str, version: int
) -> dict[str, Any]:
    """The values of one of this package's JSON objects, without "format" and "format_version".

    Args:
        where: names the object in errors.
        data: the object.
        form, version: the "format" and "format_version" that it must have.

    Raises:
        InputError: the object has another format or version, or none, or it holds NaN or infinity.
    """
    values = dict(data)
    found = (values.pop("format", None), values.pop("format_version", None))
    if found != (form, version):
        raise InputError(where, f"format {found}", f"{(form, version)}")
    for name, value in leaves(values):
        # JSON has no NaN and no infinity, but Python's parser reads both.
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(where, f"{name} {value}", "a finite number")
    return values


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
