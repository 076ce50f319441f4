"""Folders whose making can stop at any moment and go on later: hours of work are not lost.

The folder grows as `.NAME.unfinished/content` beside its final name, and gets that name when it is
complete. `.NAME.unfinished/journal.json` names the files that are done, with their sizes, and the
work that they belong to; a file is entered when it is on the disk.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from ..errors import InputError
from ..numbers import shown
from .files import check_format, read_json, write_json
from .locks import take_turns
from .staging import check_free, replace_with, restore
from .system_errors import writing

_FORMAT, _VERSION = "dspark_mlx unfinished folder", 1


class Journal:
    """The files of an unfinished folder that are done.

    Args:
        folder: the unfinished folder.
        work: what the folder is made from and how, as a digest; files of other work do not count.

    Attributes:
        content: folder that the files are written into.
    """

    def __init__(self, folder: Path, work: str) -> None:
        self.content = folder / "content"
        self._path = folder / "journal.json"
        self._work = work
        self._done: dict[str, int] = {}

    def read(self) -> bool:
        """Take over what was done before; returns whether it belongs to this work.

        Raises:
            InputError: the journal cannot be read.
        """
        if not self._path.exists():
            return True
        found = check_format(self._path, read_json(self._path), _FORMAT, _VERSION)
        files = found.get("files")
        if not isinstance(files, dict):
            raise InputError(self._path, f"files {shown(files)}", "sizes by name")
        self._done = {
            name: size
            for name, size in files.items()
            if (self.content / name).is_file() and (self.content / name).stat().st_size == size
        }
        return bool(found.get("work") == self._work)

    def has(self, name: str) -> bool:
        """Whether a file is done."""
        return name in self._done

    @property
    def count(self) -> int:
        """Number of files that are done."""
        return len(self._done)

    def enter(self, name: str) -> None:
        """Enter a file that is complete and on the disk, under a temporary name `NAME.part`."""
        path = self.content / name
        with writing(path):
            path.with_name(f"{name}.part").replace(path)
            self._done[name] = path.stat().st_size
        self.save()

    def save(self) -> None:
        """Write the journal."""
        head = {"format": _FORMAT, "format_version": _VERSION, "work": self._work}
        write_json(self._path, head | {"files": self._done})


@contextlib.contextmanager
def resumable_folder(final: Path, work: str, *, overwrite: bool = False) -> Iterator[Journal]:
    """The journal of a folder that becomes `final` when the block succeeds.

    When the block fails, or the process is killed, what is done stays for the next call.

    Args:
        final: the folder to make.
        work: see `Journal`.
        overwrite: replace what is at `final`, and drop an unfinished folder of other work.

    Raises:
        InputError: `final` exists and is not an empty folder, or other work on it is unfinished
            (unless `overwrite`); or it cannot be written to.
    """
    final = Path(os.path.realpath(final))
    check_free(final, overwrite)
    unfinished = final.with_name(f".{final.name}.unfinished")
    with contextlib.ExitStack() as stack:
        with writing(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            if stack.enter_context(take_turns(final)):
                restore(final)
            check_free(final, overwrite)
        journal = _taken_over(unfinished, work, overwrite)
        stack.push(partial(_stopped, journal, unfinished, final))
        with writing(journal.content):
            journal.content.mkdir(parents=True, exist_ok=True)
        journal.save()
        yield journal
        replace_with(journal.content, final)
        shutil.rmtree(unfinished, ignore_errors=True)


def _taken_over(unfinished: Path, work: str, overwrite: bool) -> Journal:
    """The journal of an unfinished folder, which `overwrite` removes where it is none of this work.

    Raises:
        InputError: see `resumable_folder`; or the journal is damaged.
    """
    journal = Journal(unfinished, work)
    hint = "Repeat it as it was, or start again with --overwrite."
    try:
        if journal.read():
            return journal
        found = "a conversion of another source or with other settings, not finished"
        raise InputError(unfinished, found, "none, or this one", hint)
    except InputError as error:
        if not overwrite:
            raise InputError(error.where, error.found, error.expected, hint) from error
        shutil.rmtree(unfinished)
        return Journal(unfinished, work)


def _stopped(
    journal: Journal,
    unfinished: Path,
    final: Path,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> None:
    """Say what stays of a folder whose making failed; nothing stays where no file is done."""
    if error is None:
        return
    if journal.count == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        return
    done = f"{journal.count} files of it are done and stay"
    tqdm.write(f"{final}: {done}; the same command goes on", file=sys.stderr)
