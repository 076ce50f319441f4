"""Taking turns at an output with other processes and threads; a lock ends with its process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_SILENT_SECONDS = 1.0


@contextlib.contextmanager
def take_turns(path: Path, *, wait: bool = True, kind: str = "") -> Iterator[bool]:
    """Hold a lock of an output: `.NAME.lock` beside it, which is gone afterwards.

    Args:
        path: of the output, whose folder exists.
        wait: for another that holds it, which is said after a second; else do without it.
        kind: added to NAME, where an output has several.

    Yields:
        Whether it is held. It is not where another has it and `wait` is False, nor on a file system
        that has no locks.

    Raises:
        OSError: the folder cannot be written to.
    """
    lock = path.with_name(f".{path.name}{kind}.lock")
    handle = _acquire(lock, path, wait)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            # While it is held: whoever waits for it sees that it is gone, and makes the next one.
            lock.unlink(missing_ok=True)
            os.close(handle)


def _acquire(lock: Path, path: Path, wait: bool) -> int | None:
    """The open file of the lock that is held now; None where it is not, see `take_turns`."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        held = False
        try:
            _lock(handle, path, wait)
            held = _is_at(handle, lock)
        except BlockingIOError:
            return None
        except OSError:
            # A file system without locks: only the names of what is written keep writers apart.
            lock.unlink(missing_ok=True)
            return None
        finally:
            if not held:
                os.close(handle)
        if held:
            return handle


def _lock(handle: int, path: Path, wait: bool) -> None:
    patience = time.monotonic() + _SILENT_SECONDS
    while wait:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > patience:
                break
            time.sleep(0.02)
    if wait:
        print(f"{path}: waiting for another process that writes it", file=sys.stderr)
    fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(handle: int, lock: Path) -> bool:
    """Whether a file that was opened is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), lock.stat())
    except FileNotFoundError:
        return False
