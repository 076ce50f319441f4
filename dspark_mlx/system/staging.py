"""Folders that appear whole or not at all, made by one process at a time.

What is written has a temporary name beside its own, `.NAME.xxxxxxxx.partial`, until it is whole.
Who writes holds the lock of NAME, so what is found there then is a killed run's.
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
    """A folder in the cache, made by the first of all processes that ask for it.

    The others wait for it, and take it. What killed runs left beside it is removed.

    Args:
        folder: below `cache_folder()`.
        make: writes it, as by `staged_folder`.

    Raises:
        InputError: the cache cannot be written to; or see `make`.
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
    """A temporary folder beside an output, for what it is made from; it is removed at the end.

    One process at a time has it, and removes what a killed one left.

    Raises:
        InputError: the place cannot be written to, or the block failed for a full disk.
    """
    final = beside.with_name(f"{beside.name}.scratch")
    with contextlib.ExitStack() as stack:
        with writing(beside):
            if stack.enter_context(take_turns(final)):
                restore(final)
            scratch = temporary(final)
            scratch.mkdir()
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        stack.push(partial(_blame_full_disk, scratch, beside))
        yield scratch


@contextlib.contextmanager
def staged_folder(final: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `final` that takes its name when the block succeeds.

    Nothing half-written stays behind: on any exception, Ctrl-C included, the temporary folder is
    removed and `final` is as it was. After a kill, the next one who writes there does it.

    Raises:
        InputError: `final` exists and is not an empty folder (unless `overwrite`), its parent
            cannot be written to, or the block failed for a full disk.
    """
    final = Path(os.path.realpath(final))
    _check_free(final, overwrite)
    with contextlib.ExitStack() as stack:
        try:
            for parent in reversed([each for each in final.parents if not each.exists()]):
                parent.mkdir(exist_ok=True)
                stack.callback(_remove_if_empty, parent)
            held = stack.enter_context(take_turns(final))
            if held:
                restore(final)
            _check_free(final, overwrite)
            staged = temporary(final)
            staged.mkdir()
        except OSError as error:
            found = f"no way to write there ({error.strerror})"
            raise InputError(final, found, "a writable folder") from error
        stack.callback(shutil.rmtree, staged, ignore_errors=True)
        stack.push(partial(_blame_full_disk, staged, final))
        yield staged
        _replace(staged, final)


def restore(final: Path) -> None:
    """Put right what a killed run left of an output, whose lock is held: what was moved out of the
    way takes its name again where nothing has it; what is half-written is removed."""
    for path in sorted(_leftovers(final.parent), key=lambda path: path.suffix):
        found = _LEFTOVER.fullmatch(path.name)
        if found and found["name"] == final.name:
            if found["kind"] == "old" and not final.exists():
                path.rename(final)
            else:
                _remove(path)


def restored(path: Path) -> bool:
    """Whether a path is there now that was not, because a run was killed while it replaced it."""
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
    """Restore every output in a folder that nobody is at work on."""
    found = [_LEFTOVER.fullmatch(path.name) for path in _leftovers(folder)]
    locks = [path.name[1:].removesuffix(".lock") for path in folder.glob(".*.lock")]
    for name in {*locks, *(each["name"] for each in found if each)}:
        with take_turns(folder / name, wait=False) as held:
            if held:
                restore(folder / name)


def _check_free(final: Path, overwrite: bool) -> None:
    if os.path.exists(final) and not overwrite and (not final.is_dir() or any(final.iterdir())):
        raise InputError(
            final, "an existing file or non-empty folder", "a path that is free", "Choose another."
        )


def temporary(final: Path) -> Path:
    """A free name for what becomes `final`."""
    return final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.partial")


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


def _blame_full_disk(
    staged: Path,
    final: Path,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> None:
    """Whatever failed while the disk was full failed for that: many libraries say it in errors of
    their own, or blame what they were reading."""
    if isinstance(error, Exception) and staged.is_dir():
        with writing(final), (staged / "probe").open("wb") as probe:
            probe.write(bytes(_PROBE_BYTES))
