"""Scripts in a process of their own that use this package's small modules without importing MLX."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import dspark_mlx

PACKAGE = Path(dspark_mlx.__file__).parent
# The package by its folder alone, so that its own imports, seconds of them, are left out.
BARE = f"""
import os, signal, sys, types
package = types.ModuleType("dspark_mlx")
package.__path__ = [{str(PACKAGE)!r}]
sys.modules["dspark_mlx"] = package
"""


def listen_to_ctrl_c() -> None:
    """Undo, in a process before it begins, a SIGINT that is ignored: a shell's `&` leaves it so."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(script: str, *arguments: str, **options: Any) -> subprocess.Popen:
    """Begin a script."""
    options = {"preexec_fn": listen_to_ctrl_c} | options
    return subprocess.Popen([sys.executable, "-c", BARE + script, *arguments], **options)


def run(script: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess:
    """Run a script to its end; what it writes is kept, unless `options` say where it goes."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    options = pipes | {"preexec_fn": listen_to_ctrl_c} | options
    command = [sys.executable, "-c", BARE + script, *arguments]
    return subprocess.run(command, check=False, timeout=60, **options)
