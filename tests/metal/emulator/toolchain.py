"""The compiler that the emulator needs, and a folder in which what it made is kept."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

CLANG, DISASSEMBLER, SYMBOLIZER = "clang++-19", "llvm-dis-19", "llvm-symbolizer-19"
HERE = Path(__file__).parent
RUNTIME, SHIM = HERE / "runtime", HERE / "shim"
# Fibers switch by x86-64 assembler; f16c and fma are in every such CPU of the last ten years.
MACHINE = ("-fPIC", "-mf16c")


class CompileError(Exception):
    """A kernel, or the runtime, that the compiler refuses."""


def why_not() -> str | None:
    """Why the emulator cannot run here, or None."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return f"the emulator runs on Linux on x86-64, not on {platform.machine()}"
    if shutil.which(CLANG) is None:
        return f"{CLANG} is not installed (apt-get install clang-19 llvm-19)"
    return None


def why_no_air() -> str | None:
    """Why compiled kernels cannot be read here, or None."""
    if shutil.which(DISASSEMBLER) is None:
        return f"{DISASSEMBLER} is not installed (apt-get install llvm-19)"
    return why_not()


def run_tool(*arguments: str | Path) -> str:
    """Standard output of a tool.

    Raises:
        CompileError: it fails; with what it says.
    """
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True)
    if done.returncode:
        raise CompileError(f"{' '.join(map(str, arguments))}\n{done.stderr[:6000]}")
    return done.stdout


@dataclass(frozen=True)
class Toolchain:
    """Compiles once what it is asked for, and keeps it in a folder under a hash of its text."""

    folder: Path

    @cached_property
    def runtime(self) -> Path:
        """The runtime as a shared library."""
        sources = sorted(RUNTIME.glob("*.cpp"))
        text = "".join(path.read_text() for path in (*sources, *RUNTIME.glob("*.h")))
        library = self.path("runtime", text, ".so")
        if not library.exists():
            self._install(library, "-std=c++17", "-O2", "-g1", "-mfma", "-shared", *sources, "-ldl")
        return library

    def library(self, text: str, language: str, options: tuple[str | Path, ...]) -> Path:
        """A kernel as a shared library that is linked with the runtime.

        Args:
            text: a C++ translation unit, or LLVM IR.
            language: "c++" or "ir".
            options: further ones of the compiler.

        Raises:
            CompileError: the compiler refuses it.
        """
        library = self.path("kernel", f"{text}{options}{self.runtime}{shim_text()}", ".so")
        if not library.exists():
            source = library.with_suffix(".cpp" if language == "c++" else ".ll")
            source.write_text(text)
            link = ("-shared", "-x", language, source, "-x", "none", self.runtime, "-lm")
            self._install(library, *options, *link, "-Wl,-z,defs")
        return library

    def path(self, kind: str, text: str, suffix: str) -> Path:
        """Where a thing with this text is kept."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}{suffix}"

    def _install(self, library: Path, *arguments: str | Path) -> None:
        # Under a name of this process: a run that is stopped leaves no half library behind, and two
        # at once do not meet.
        partial = library.with_suffix(f".{os.getpid()}.partial")
        run_tool(CLANG, *MACHINE, *arguments, "-o", partial)
        partial.rename(library)


def shim_text() -> str:
    """All of the shim's headers, of which a compiled kernel is made too."""
    return "".join(path.read_text() for path in sorted(SHIM.rglob("*")) if path.is_file())


def source_line(library: Path, offset: int) -> str:
    """ "kernel:12:3" for an address in a library, or "" where the library does not say."""
    if shutil.which(SYMBOLIZER) is None:
        return ""
    lines = run_tool(SYMBOLIZER, f"--obj={library}", hex(offset)).splitlines()
    places = [line.rsplit("/", 1)[-1] for line in lines if line.count(":") >= 2 and "?" not in line]
    return next((p for p in places if p.startswith("kernel")), places[0] if places else "")
