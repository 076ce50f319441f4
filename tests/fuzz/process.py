"""Runs a command in a fork of this process, within bounds of time and memory.

The parent has imported everything and computed nothing, so that a case costs no imports and MLX
works in the child. Linux alone: Metal does not survive a fork, and memory is read in /proc.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import io
import os
import resource
import runpy
import select
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from .commands import MODULES, Call

SECONDS = 60
"""CPU time that a command may take, which another process's load does not change."""
_WAIT = 240
"""Seconds after which a command that does not compute is ended."""
BYTES = 1 << 30
"""Memory that a command may take beyond what its imports take."""
# Imported by the commands when they need them, or by a library at its first use.
_LATER = (
    "transformers.models.auto.tokenization_auto",
    "transformers.tokenization_utils_tokenizers",
    "mlx_lm.tokenizer_utils",
    "mlx_lm.models.llama",
    "mlx_lm.models.qwen3",
    "mlx_lm.models.gemma4_text",
    "mlx_lm.generate",
    "jinja2.sandbox",
    "llguidance.hf",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
)


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        status: exit status; minus the signal that killed it.
        stdout, stderr: what it wrote.
        bound: the bound that it broke, in words, or "".
        seconds: of CPU time. peak: bytes beyond the parent's.
    """

    status: int
    stdout: bytes
    stderr: bytes
    bound: str
    seconds: float
    peak: int


def prepare() -> None:
    """Import everything that a command may import."""
    for name in (*MODULES.values(), *_LATER):
        importlib.import_module(name)


def run(call: Call, folder: Path, aside: Path) -> Outcome:
    """Run a command in a folder.

    Args:
        call: what to run. folder: its current folder.
        aside: gets its home, its cache and temporary files, and what it writes.
    """
    for name in ("home", "cache", "tmp"):
        (aside / name).mkdir(parents=True, exist_ok=True)
    # Kernels that MLX compiles are kept for the next case.
    (aside / "tmp" / "mlx").symlink_to(_kernels())
    streams = [aside / name for name in ("stdin", "stdout", "stderr")]
    streams[0].write_bytes(call.stdin)
    sys.stdout.flush()
    base = _resident(os.getpid())
    child = os.fork()
    if child == 0:
        status = 70
        try:
            _enter(folder, aside, streams)
            status = _command(call)
        finally:
            # Never back into the parent's code, whatever happened.
            os._exit(status)
    bound = _watch(child, base)
    _, state, usage = os.wait4(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(state)
    if status == -signal.SIGXCPU:
        bound = bound or f"more than {SECONDS} s"
    peak = 1024 * usage.ru_maxrss - base
    if peak > BYTES:
        bound = bound or f"{peak >> 20} MB"
    seconds = usage.ru_utime + usage.ru_stime
    return Outcome(status, streams[1].read_bytes(), streams[2].read_bytes(), bound, seconds, peak)


def _kernels() -> Path:
    folder = Path(tempfile.gettempdir()) / "fuzz-kernels"
    folder.mkdir(exist_ok=True)
    return folder


def _watch(child: int, base: int) -> str:
    """Wait for the end of a process, which is not collected yet; returns the bound it broke."""
    until = time.monotonic() + _WAIT
    handle = os.pidfd_open(child)
    try:
        while not select.select([handle], [], [], 0.05)[0]:
            if _resident(child) > base + BYTES:
                _end(child)
                return f"more than {BYTES >> 20} MB"
            if time.monotonic() > until:
                _end(child)
                return f"no end after {_WAIT} s"
    finally:
        os.close(handle)
    return ""


def _end(child: int) -> None:
    """End a process, which is given a moment to say where it is."""
    os.kill(child, signal.SIGXCPU)
    time.sleep(0.1)
    os.kill(child, signal.SIGKILL)


def _resident(process: int) -> int:
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):  # it has just ended
        return 0
    return pages * resource.getpagesize()


def _enter(folder: Path, aside: Path, streams: list[Path]) -> None:
    """Make the child look like a fresh process of its own."""
    os.setpgid(0, 0)
    os.chdir(folder)
    os.environ["HOME"] = str(aside / "home")
    os.environ["XDG_CACHE_HOME"] = str(aside / "cache")
    os.environ["TMPDIR"] = str(aside / "tmp")
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    flags = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT)
    for number, (path, how) in enumerate(zip(streams, flags, strict=True)):
        os.dup2(os.open(path, how), number)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), "utf-8")
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    # A process that is killed says where it was.
    faulthandler.enable(all_threads=False)
    faulthandler.register(signal.SIGXCPU, all_threads=False, chain=True)


def _command(call: Call) -> int:
    """What the interpreter does with a command: its exit status, or a traceback and 1."""
    module = MODULES[call.command]
    # As `python -m` does; run a second time under its name, it would warn of the first.
    sys.modules.pop(module, None)
    sys.argv = [module, *call.arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # noqa: BLE001, for what the interpreter shows is judged
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status
