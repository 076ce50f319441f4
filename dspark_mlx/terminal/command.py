"""Runs a command and ends its process with a message and an exit status.

The status is 0 for success; 1 where `convert check` finds that a pair does not fit, or where the
reader of a pipe has gone; 2 where something cannot be used, read or written, with one line on
standard error; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import errno
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TextIO

from tqdm import tqdm

from ..errors import InputError, did_you_mean
from ..system import process
from ..system.process import INTERRUPTED
from ..system.strict_json import check_text
from ..system.system_errors import from_system

_UNUSABLE = 2
_LONGEST_INPUT = 1 << 26
# What argparse says, and its found and expected.
_ARGPARSE = (
    (r"unrecognized arguments: (.*)", r"\1", "the arguments that --help shows"),
    (r"the following arguments are required: (.*)", r"no \1", "a value, as --help shows"),
    (r"invalid (.+) value: (.*)", r"\2", r"\1"),
    (r"invalid choice: (.+) \(choose from (.*)\)", r"\1", r"one of \2"),
    (r"expected (.*)", "no value", r"\1"),
    (r"ambiguous option: (\S+) could match (.*)", r"\1", r"one of \2"),
    (r"not allowed with argument (.*)", r"\1 beside it", "only one of the two"),
)
_STREAM_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage that --help shows.

    For an unknown flag or choice the line ends with the known one that is most like it.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(exit_on_error=False, **settings)

    def parse_known_args(self, *args: Any, **more: Any) -> Any:
        """See `argparse.ArgumentParser`; arguments that are wrong or unknown end the process.

        Those of a sub-command are refused here, since the parser above it does not have its flags.
        """
        try:
            found, unknown = super().parse_known_args(*args, **more)
        except argparse.ArgumentError as error:
            self._refuse(error.argument_name or self.prog, error.message)
        if unknown:
            self._refuse(self.prog, f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Print the error and end the process with status 2."""
        self._refuse(self.prog, message)

    def _refuse(self, where: str, message: str) -> NoReturn:
        found, expected = message, "the arguments that --help shows"
        for pattern, *words in _ARGPARSE:
            if match := re.fullmatch(pattern, message):
                found, expected = (match.expand(each) for each in words)
        expected = {"int": "a whole number", "float": "a number"}.get(expected, expected)
        error = InputError(where, found, expected, self._hint(message))
        self.exit(_UNUSABLE, f"error: {error}\n")

    def _hint(self, message: str) -> str:
        """The flag or choice that was meant by an unknown one, if it can be told."""
        if flag := re.match(r"unrecognized arguments:.*? (-[^\s=]+)", message):
            return did_you_mean(flag[1], self._option_string_actions)
        if choice := re.match(r"invalid choice: '?(.+?)'? \(choose from (.*)\)", message):
            return did_you_mean(choice[1], re.findall(r"[^\s',]+", choice[2]))
        return ""


def whole_number(
    least: int, most: int | None = None, what: str = "a whole number"
) -> Callable[[str], int]:
    """The `type` of a flag that is a whole number from `least` to `most`; `what` names it."""

    def read(text: str) -> int:
        number = int(text)
        if number < least or (most is not None and number > most):
            raise ValueError
        return number

    # argparse puts the name into its message.
    read.__name__ = f"{what}, {least} or more" if most is None else f"{what}, {least} to {most}"
    return read


def run(main: Callable[[list[str] | None], int]) -> None:
    """Run a command, and end the process with its status."""
    for stream in (sys.stdin, sys.stdout):
        if hasattr(stream, "reconfigure"):
            # Characters that the terminal lacks are printed as "?". Input bytes that are not text
            # become surrogates, which `read_input` refuses with their position.
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdin else "replace")
    warnings.showwarning = _show_warning
    try:
        process.raise_on_interrupt()
        status, message = _outcome(main)
        # Only now is the exception freed, with the frames that hold the command's progress bars.
        process.end_on_interrupt()
    except KeyboardInterrupt:  # between two of these lines, or the second one
        process.end_on_interrupt()
        status, message = _interrupted()
    if message:
        _say(message)
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)
    sys.exit(status)


@contextlib.contextmanager
def warnings_behind() -> Iterator[None]:
    """A block that prints a text piece by piece; warnings are shown behind it, and not in it."""
    held: list[tuple[Any, ...]] = []
    before = warnings.showwarning
    warnings.showwarning = lambda *about: held.append(about)
    try:
        yield
    finally:
        warnings.showwarning = before
        for about in held:
            before(*about)


def print_json(value: Any) -> None:
    """Print one line of JSON; a stream without UTF-8 gets other characters as escapes."""
    utf8 = codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name == "utf-8"
    print(json.dumps(value, ensure_ascii=not utf8, allow_nan=False), flush=True)


def read_input() -> str:
    """The text of standard input.

    Raises:
        InputError: the input is not text, or has more than 2^26 characters.
    """
    text = sys.stdin.read(_LONGEST_INPUT + 1)
    if len(text) > _LONGEST_INPUT:
        raise InputError("standard input", f"more than {_LONGEST_INPUT} characters", "a prompt")
    check_text("standard input", text)
    return text


def _outcome(main: Callable[[list[str] | None], int]) -> tuple[int, str]:
    """Run the command; returns the exit status, and the message for standard error."""
    try:
        _check_arguments(sys.argv[1:])
        status = _main_status(main)
        sys.stdout.flush()
        return status, ""
    except InputError as error:
        return _UNUSABLE, f"error: {error}"
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        # The reader of a pipe has gone, so nobody would read a message.
        return 1, ""
    except OSError as error:
        # An error of a file has the file's name; one of a stream has none.
        stream = not error.filename and error.errno in _STREAM_ERRORS
        return _UNUSABLE, f"error: {from_system(error, 'standard output' if stream else '')}"
    except UnicodeError as error:
        return _UNUSABLE, f"error: {InputError('text', error, 'UTF-8')}"
    except MemoryError:
        return _UNUSABLE, f"error: {InputError('memory', 'too little', 'enough for the model')}"


def _interrupted() -> tuple[int, str]:
    # A terminal has "^C" on the current line, so the message begins a new one.
    return INTERRUPTED, "\ninterrupted" if sys.stderr.isatty() else "interrupted"


def _main_status(main: Callable[[list[str] | None], int]) -> int:
    try:
        return main(None)
    except SystemExit as end:  # raised by argparse, whose output may not be flushed yet
        return end.code if isinstance(end.code, int) else 0


def _check_arguments(arguments: Sequence[str]) -> None:
    for before, argument in zip(["", *arguments], arguments, strict=False):
        flag = argument.split("=")[0] if argument.startswith("--") else before
        check_text(flag if flag.startswith("-") else "arguments", argument)


def _flush(stream: TextIO) -> None:
    """Flush a stream; if that fails, redirect it to the null device.

    Python flushes streams again at its end, and would report the same failure in its own words.
    """
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _say(message: str) -> None:
    """Print a line on standard error, above any progress bar."""
    try:
        tqdm.write(message, file=sys.stderr)
    except OSError:
        _flush(sys.stderr)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _say("warning: " + " ".join(str(message).split()))
