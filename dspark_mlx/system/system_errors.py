"""Turns errors of the operating system into an InputError that names the place and a full disk."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError

_FULL = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "the quota used up",
    errno.EROFS: "a read-only file system",
}
_EXPECTED = {
    errno.EACCES: "one that this user may use",
    errno.EPERM: "one that this user may use",
    errno.EMFILE: "fewer open files, or a higher limit (ulimit -n)",
    errno.ENFILE: "fewer open files on this machine",
    errno.EFBIG: "a smaller file, or a higher limit (ulimit -f)",
    errno.ENOENT: "an existing path",
}


def from_system(error: OSError, where: object = "") -> InputError:
    """The `InputError` of one line for an error of the operating system.

    Args:
        error: the error that was raised.
        where: the file or stream; "" for the one that the error names.
    """
    path = where if isinstance(where, Path) else error.filename
    place = where or path or "the system"
    if error.errno in _FULL:
        disk = _disk_of(Path(os.fsdecode(path))) if path else ""
        return InputError(place, f"{_FULL[error.errno]}{disk}", "a place with room to write")
    expected = _EXPECTED.get(error.errno or 0, "one that can be used")
    reason = error.strerror or str(error) or type(error).__name__
    return InputError(place, reason, expected)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """A block that writes `path`, possibly under a temporary name; its errors name `path`.

    Raises:
        InputError: the disk is full, or the path cannot be written to.
    """
    try:
        yield
    except OSError as error:
        raise from_system(error, path) from error


def _disk_of(path: Path) -> str:
    """Where the file system of a path is mounted, and how much space is free, for a message."""
    there = next(each for each in (path, *path.absolute().parents) if os.path.isdir(each))
    there = there.resolve()  # a cache folder is often a link to another disk
    mount = next(each for each in (there, *there.parents) if os.path.ismount(each))
    return f" on the disk at {mount} ({shutil.disk_usage(mount).free / 1e6:.1f} MB free)"
