"""Prepares the process of a command: Ctrl-C ends it with one line, and its streams are open.

`python -m dspark_mlx.X` first imports this package and MLX. This takes seconds, in which Python
would answer Ctrl-C with a traceback, so this module is the package's first import. It changes
nothing where the package is imported by another program.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

INTERRUPTED = 130
"""Exit status after Ctrl-C, the one that shells use."""
_AGAIN = 0.05
"""Seconds after which a KeyboardInterrupt that Python dropped is raised again."""


def raise_on_interrupt() -> None:
    """Make Ctrl-C raise KeyboardInterrupt from here on, as is usual in Python.

    Python drops one that is raised in a destructor or in a callback of the garbage collector or of
    an import; it is then raised again a moment later.
    """
    sys.unraisablehook = _raise_again
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def end_on_interrupt() -> None:
    """Make Ctrl-C end the process at once from here on; where it is ignored, it stays ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


@contextlib.contextmanager
def ended_by_interrupt() -> Iterator[None]:
    """A block in which Ctrl-C ends the process at once.

    It is for work that leaves nothing behind when it is killed. No library in it can swallow the
    interrupt, as it can a KeyboardInterrupt.
    """
    before = signal.getsignal(signal.SIGINT)
    end_on_interrupt()
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is _end:
            signal.signal(signal.SIGINT, before)


def program(command: str) -> str:
    """How a command of this package is called, as this process was: by a script or `python -m`.

    Args:
        command: its name, as "generate".
    """
    script = os.path.basename(sys.argv[0])
    if script == "dspark-mlx-lm":
        return f"dspark-mlx-lm {command}"
    return f"{'' if script.startswith('dspark_mlx.') else 'python -m '}dspark_mlx.{command}"


def _end(number: int, frame: FrameType | None) -> None:
    # Written to the descriptor: the stream object may be in the middle of a write.
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _raise_again(dropped: Any) -> None:
    if not issubclass(dropped.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(dropped)
        return
    # Not here, where it would be dropped again.
    again = threading.Timer(_AGAIN, os.kill, (os.getpid(), signal.SIGINT))
    again.daemon = True
    again.start()


def _is_command() -> bool:
    # While `python -m` looks for the module, sys.argv[0] is "-m".
    names = (re.fullmatch(r"(-\w*m)?dspark_mlx(\.[\w.]+)?", each) for each in sys.orig_argv[1:])
    script = re.search(r"(^|[/\\])(dspark_mlx\.\w+|dspark-mlx-lm)$", sys.argv[0])
    return bool(script) or (sys.argv[0] == "-m" and any(names))


def _open_streams() -> None:
    """Open the streams that the caller closed (`>&-`) as the null device.

    Otherwise the next file that is opened would get the stream's number, and output would be
    written into that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


if _is_command():
    _open_streams()
    end_on_interrupt()
