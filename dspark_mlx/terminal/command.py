"""How a command runs and ends: the one boundary between the package and a terminal or a shell.

Exit statuses: 0; 1 where a command found what it looks for (a pair that does not fit) or the reader
of its output left; 2 with one line on standard error for everything that cannot be used, read or
written; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import codecs
import errno
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TextIO

from tqdm import tqdm

from ..errors import InputError
from ..system import process
from ..system.process import INTERRUPTED
from ..system.strict_json import check_text
from ..system.system_errors import from_system

_UNUSABLE = 2
_LONGEST_INPUT = 1 << 26
_OF_STREAMS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


class Parser(argparse.ArgumentParser):
    """argparse's, which refuses arguments in one line; --help shows the usage."""

    def error(self, message: str) -> NoReturn:
        """See argparse."""
        refusal = InputError(self.prog, message, "the arguments that --help shows")
        self.exit(_UNUSABLE, f"error: {refusal}\n")


def run(main: Callable[[list[str] | None], int]) -> None:
    """Run a command, and end the process with its status."""
    process.raise_on_interrupt()
    for stream in (sys.stdin, sys.stdout):
        if hasattr(stream, "reconfigure"):
            # Letters that a terminal lacks become "?"; bytes that are not text are said by place.
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdin else "replace")
    warnings.showwarning = _show_warning
    status, message = _outcome(main)
    # What failed is gone only now, and with its frames the progress bars that it drew.
    process.end_on_interrupt()
    if message:
        _say(message)
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)
    sys.exit(status)


def print_json(value: Any) -> None:
    """Print one line of JSON, which a terminal without UTF-8 gets in escapes."""
    utf8 = codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name == "utf-8"
    print(json.dumps(value, ensure_ascii=not utf8, allow_nan=False), flush=True)


def read_input() -> str:
    """All of standard input.

    Raises:
        InputError: it is not text, or has no end.
    """
    text = sys.stdin.read(_LONGEST_INPUT + 1)
    if len(text) > _LONGEST_INPUT:
        raise InputError("standard input", f"more than {_LONGEST_INPUT} characters", "a prompt")
    check_text(text, "standard input")
    return text


def _outcome(main: Callable[[list[str] | None], int]) -> tuple[int, str]:
    """The exit status, and what is to be said on standard error."""
    try:
        _check_arguments(sys.argv[1:])
        status = _main_status(main)
        sys.stdout.flush()
        return status, ""
    except InputError as error:
        return _UNUSABLE, f"error: {error}"
    except KeyboardInterrupt:
        # A terminal shows "^C" on the line that it is on.
        return INTERRUPTED, "\ninterrupted" if sys.stderr.isatty() else "interrupted"
    except BrokenPipeError:
        # The reader of a pipe left; there is nobody to tell.
        return 1, ""
    except OSError as error:
        # Files' errors name them, and a stream's cannot.
        stream = not error.filename and error.errno in _OF_STREAMS
        return _UNUSABLE, f"error: {from_system(error, 'standard output' if stream else '')}"
    except UnicodeError as error:
        return _UNUSABLE, f"error: {InputError('text', error, 'UTF-8')}"
    except MemoryError:
        return _UNUSABLE, f"error: {InputError('memory', 'too little', 'enough for the model')}"


def _main_status(main: Callable[[list[str] | None], int]) -> int:
    try:
        return main(None)
    except SystemExit as end:  # argparse's: its output may still wait to be written
        return end.code if isinstance(end.code, int) else 0


def _check_arguments(arguments: Sequence[str]) -> None:
    for before, argument in zip(["", *arguments], arguments, strict=False):
        flag = argument.split("=")[0] if argument.startswith("--") else before
        check_text(argument, flag if flag.startswith("-") else "arguments")


def _flush(stream: TextIO) -> None:
    """Flush; a stream that takes nothing any more leads nowhere from then on.

    Python flushes once more at its end, and would report the same failure in lines of its own.
    """
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _say(message: str) -> None:
    """A line of its own on standard error, whatever bar is there."""
    try:
        tqdm.write(message, file=sys.stderr)
    except OSError:
        _flush(sys.stderr)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _say("warning: " + " ".join(str(message).split()))
