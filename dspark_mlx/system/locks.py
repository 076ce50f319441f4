"""File locks, with which processes and threads take turns at writing an output.

The system releases a lock when its process ends, however that happens.
"""

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
    """Hold the lock of an output for the length of a `with` block.

    The lock is a file `.NAME.lock` beside the output, which is removed at the end.

    Args:
        path: path of the output, whose folder exists.
        wait: whether to wait while another process or thread holds the lock; after a second a
            message says so.
        kind: added to NAME, where an output has several locks.

    Yields:
        Whether the lock is held. It is not held where another has it and `wait` is False, or where
        the file system has no locks.

    Raises:
        OSError: the folder cannot be written to.
    """
    lock = path.with_name(f".{path.name}{kind}.lock")
    handle = _acquire(lock, path, wait)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            # Removed while it is held: whoever waits for it sees that, and makes a new lock file.
            lock.unlink(missing_ok=True)
            os.close(handle)


def _acquire(lock: Path, path: Path, wait: bool) -> int | None:
    """The file descriptor of the held lock; None where it cannot be held, see `take_turns`."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        held = False
        try:
            _lock(handle, path, wait)
            held = _is_at(handle, lock)
        except BlockingIOError:
            return None
        except OSError:
            # On a file system without locks, only the random names of temporary files keep writers
            # apart.
            lock.unlink(missing_ok=True)
            return None
        finally:
            if not held:
                os.close(handle)
        if held:
            return handle


def _lock(handle: int, path: Path, wait: bool) -> None:
    silent_until = time.monotonic() + _SILENT_SECONDS
    while wait:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > silent_until:
                break
            time.sleep(0.02)
    if wait:
        print(f"{path}: waiting for another process that writes it", file=sys.stderr)
    fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(handle: int, lock: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), lock.stat())
    except FileNotFoundError:
        return False
