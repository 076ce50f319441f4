"""Folders that appear whole or not at all, made by one process at a time.

An output is written under a temporary name, `.NAME.xxxxxxxx.partial`, beside its final one, and is
renamed when it is complete. The writer holds the lock of NAME, so other temporary names that it
finds are leftovers of killed runs.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType

from ..errors import InputError
from .locks import take_turns
from .system_errors import from_system, writing

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.(?P<kind>partial|old)")
_PROBE_BYTES = 1 << 16


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """A folder in the cache, which the first process that asks for it makes.

    Other processes wait until it is made. Leftovers of killed runs beside it are removed.

    Args:
        folder: a path below `cache_folder()`.
        make: writes the folder, with `staged_folder`.

    Raises:
        InputError: the cache cannot be written to, or `make` raises one.
    """
    if os.path.isdir(folder):
        return folder
    with contextlib.ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(take_turns(folder, kind=".once"))
            _clear(folder.parent)
        except OSError as error:
            refusal = from_system(error, folder.parent)
            hint = "XDG_CACHE_HOME names another place for the cache."
            raise InputError(refusal.where, refusal.found, refusal.expected, hint) from error
        if not os.path.isdir(folder):
            make(folder)
    return folder


@contextlib.contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """A temporary folder beside an output, for intermediate files; it is removed at the end.

    One process at a time has it, and removes the leftovers of killed runs.

    Raises:
        InputError: the folder cannot be written to, or the block failed because the disk is full.
    """
    final = beside.with_name(f"{beside.name}.scratch")
    with contextlib.ExitStack() as stack:
        with writing(beside):
            if stack.enter_context(take_turns(final)):
                restore(final)
            scratch = temporary(final)
            scratch.mkdir()
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        stack.push(partial(_report_full_disk, scratch, beside))
        yield scratch


@contextlib.contextmanager
def staged_folder(final: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `final` that is renamed to `final` when the block succeeds.

    On any exception, Ctrl-C included, the temporary folder is removed and `final` stays as it was.
    After a kill, the next process that writes `final` removes the leftovers.

    Args:
        final: the folder to make.
        overwrite: replace what is at `final`.

    Raises:
        InputError: `final` exists and is not an empty folder (unless `overwrite`), its parent
            cannot be written to, or the block failed because the disk is full.
    """
    final = Path(os.path.realpath(final))
    check_free(final, overwrite)
    with contextlib.ExitStack() as stack:
        try:
            for parent in reversed([each for each in final.parents if not each.exists()]):
                parent.mkdir(exist_ok=True)
                stack.callback(_remove_if_empty, parent)
            held = stack.enter_context(take_turns(final))
            if held:
                restore(final)
            check_free(final, overwrite)
            staged = temporary(final)
            staged.mkdir()
        except OSError as error:
            found = f"no way to write there ({error.strerror})"
            raise InputError(final, found, "a writable folder") from error
        stack.callback(shutil.rmtree, staged, ignore_errors=True)
        stack.push(partial(_report_full_disk, staged, final))
        yield staged
        replace_with(staged, final)


def restore(final: Path) -> None:
    """Repair an output after a killed run; the caller holds its lock.

    A folder that was moved aside to be replaced gets its name back if nothing has that name now.
    Half-written files and folders are removed.
    """
    for path in sorted(_leftovers(final.parent), key=lambda path: path.suffix):
        found = _LEFTOVER.fullmatch(path.name)
        if found and found["name"] == final.name:
            if found["kind"] == "old" and not final.exists():
                path.rename(final)
            else:
                _remove(path)


def restored(path: Path) -> bool:
    """Whether a missing path exists now, because a killed run had moved it aside to replace it."""
    names = [each.name for each in _leftovers(path.parent) if each.suffix == ".old"]
    if not any(name.startswith(f".{path.name}.") for name in names):
        return False
    with take_turns(path, wait=False) as held:
        if held:
            restore(path)
    return path.exists()


def _leftovers(folder: Path) -> list[Path]:
    if not os.access(folder, os.R_OK) or not folder.is_dir():
        return []
    return [folder / name for name in os.listdir(folder) if _LEFTOVER.fullmatch(name)]


def _clear(folder: Path) -> None:
    """Restore every output in a folder that no process is writing."""
    found = [_LEFTOVER.fullmatch(path.name) for path in _leftovers(folder)]
    locks = [path.name[1:].removesuffix(".lock") for path in folder.glob(".*.lock")]
    for name in {*locks, *(each["name"] for each in found if each)}:
        with take_turns(folder / name, wait=False) as held:
            if held:
                restore(folder / name)


def check_free(final: Path, overwrite: bool) -> None:
    """Refuse an output that would replace something.

    Raises:
        InputError: `final` exists and is not an empty folder, unless `overwrite`.
    """
    if os.path.exists(final) and not overwrite and (not final.is_dir() or any(final.iterdir())):
        hint = "Choose another, or replace what is there (--overwrite)."
        raise InputError(final, "an existing file or non-empty folder", "a path that is free", hint)


def temporary(final: Path) -> Path:
    """A free temporary name for an output that becomes `final`."""
    return final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.partial")


def replace_with(staged: Path, final: Path) -> None:
    """Give a folder its final name, in place of what has that name; the lock of `final` is held."""
    old = temporary(final).with_suffix(".old")
    if final.exists():
        final.rename(old)
    try:
        staged.rename(final)
    except OSError:
        if old.exists():
            old.rename(final)
        raise
    if old.exists():
        _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _report_full_disk(
    staged: Path,
    final: Path,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> None:
    """Raise an `InputError` about the disk if a block failed while the disk was full.

    Many libraries report a full disk with errors of their own that do not say so. Whether the disk
    is full is found out by writing a small file.
    """
    if isinstance(error, Exception) and staged.is_dir():
        with writing(final), (staged / "probe").open("wb") as probe:
            probe.write(bytes(_PROBE_BYTES))
