"""The two ways to a program: Apple's compiled kernels, and Metal source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .air import host_module
from .metallib import kernels
from .mlx_source import PREAMBLE, mlx_headers
from .msl import translated
from .program import Buffer, Program
from .toolchain import SHIM, Toolchain

# No vector code of the host's, and no fusing but what the kernel's own language allows.
PLAIN = ("-O1", "-fno-vectorize", "-fno-slp-vectorize", "-Wno-override-module", "-w")
CPP = (
    *("-std=c++17", "-g1", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics"),
    *("-Xclang", "-ffloat16-excess-precision=none"),
    *("-Xclang", "-fbfloat16-excess-precision=none"),
)


@dataclass
class Emulator:
    """Makes programs of kernels, each once.

    Args of both ways:
        fused: a * b + c may be one operation, as on Apple's GPUs; both are tried.
        checked: every access is checked; without it a large kernel runs several times faster.
    """

    toolchain: Toolchain
    _programs: dict[tuple[object, ...], Program] = field(default_factory=dict)

    def air(
        self,
        metallib: Path,
        name: str,
        constants: Mapping[int, int] | None = None,
        fused: bool = True,
        checked: bool = True,
    ) -> Program:
        """A stock kernel as Apple's compiler left it.

        Raises:
            KeyError: the metallib has no kernel of that name.
        """
        key = (metallib, name, tuple(sorted((constants or {}).items())), fused, checked)
        if key not in self._programs:
            module = host_module(kernels(metallib)[name], constants or {})
            options = (*PLAIN, *self._modes(fused, checked))
            library = self.toolchain.library(module.text, "ir", options)
            self._programs[key] = self._program(library, module.buffers, checked)
        return self._programs[key]

    def msl(
        self,
        source: str,
        function: str,
        template: tuple[str, ...] = (),
        fused: bool = True,
        checked: bool = True,
        preamble: str = PREAMBLE,
        headers: Path | None = None,
    ) -> Program:
        """A kernel from its source.

        Args:
            source: the whole text, with the signature that says `[[kernel]]`.
            template: the template's arguments, as text.
            headers: where MLX's own headers are; None is the installed MLX's.

        Raises:
            CompileError: the compiler refuses the source.
        """
        key = (source, function, template, fused, checked, preamble, headers)
        if key not in self._programs:
            unit = translated(source, function, template, preamble)
            contract = f"-ffp-contract={'on' if fused else 'off'}"
            include = ("-I", SHIM, "-I", headers or mlx_headers())
            options: tuple[str | Path, ...] = (*PLAIN, *CPP, contract, *include)
            options = (*options, *self._modes(fused, checked))
            library = self.toolchain.library(unit.text, "c++", options)
            self._programs[key] = self._program(library, unit.buffers, checked)
        return self._programs[key]

    def _program(self, library: Path, buffers: list[Buffer], checked: bool) -> Program:
        return Program(library, buffers, self.toolchain.runtime, checked)

    @staticmethod
    def _modes(fused: bool, checked: bool) -> tuple[str, ...]:
        return ("-mfma",) * fused + ("-fsanitize=thread",) * checked
