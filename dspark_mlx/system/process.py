"""A command's process while it is being imported: Ctrl-C ends it in one line, its streams are open.

`python -m dspark_mlx.X` imports this package first, and MLX with it: seconds in which Python would
answer Ctrl-C with a traceback. So this module is the package's first import. Where the package is
imported by anything else it changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from types import FrameType

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def raise_on_interrupt() -> None:
    """Ctrl-C raises KeyboardInterrupt from here on, as Python does unless a command is imported."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def end_on_interrupt() -> None:
    """Ctrl-C ends the process at once from here on; where it is ignored, it stays ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    # By the number: the stream may be in the middle of a write.
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _is_command() -> bool:
    # While `python -m` looks for the module, Python has "-m" in its place among the arguments.
    names = (re.fullmatch(r"(-\w*m)?dspark_mlx(\.[\w.]+)?", each) for each in sys.orig_argv[1:])
    script = re.search(r"(^|[/\\])(dspark_mlx\.\w+|dspark-mlx-lm)$", sys.argv[0])
    return bool(script) or (sys.argv[0] == "-m" and any(names))


def _open_streams() -> None:
    """Open what the caller closed (`>&-`) as the null device, which takes its number too: else the
    next file would, and be printed into."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


if _is_command():
    _open_streams()
    end_on_interrupt()
