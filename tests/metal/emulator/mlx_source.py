"""The text that `mx.fast.metal_kernel` would hand to Apple's compiler, from MLX itself.

Where there is no Metal, MLX still records such a kernel while a function is exported, and prints
its text when asked to.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

# What MLX puts before each of its users' kernels.
PREAMBLE = '#include "mlx/backend/metal/kernels/utils.h"\nusing namespace metal;\n'


def mlx_headers() -> Path:
    """The folder in which MLX's wheel has the headers of its kernels."""
    return Path(mx.__file__).parent / "include"


@dataclass(frozen=True)
class Source:
    """A kernel's whole text, the function's name, and its template's arguments as text."""

    text: str
    function: str
    template: tuple[str, ...]


def generated(call: Callable[..., list[mx.array]], inputs: list[mx.array]) -> Source:
    """The source that a call of a Metal kernel would compile.

    Args:
        call: calls the kernel with the inputs and `verbose=True`.

    Raises:
        ValueError: MLX printed none; this version records no Metal kernel without Metal.
    """
    printed = _printed(call, inputs)
    body = re.search(r"```\n(.*)```", printed, re.S)
    if body is None:
        raise ValueError(f"no source in what MLX printed: {printed[:200]!r}")
    text = body.group(1)
    made = re.search(r"decltype\((\w+)<(.*?)>\)", text)
    if made is None:
        function = re.search(r"\[\[kernel\]\] void (\w+)", text)
        assert function is not None
        return Source(text, function.group(1), ())
    return Source(text, made.group(1), tuple(a.strip() for a in made.group(2).split(",")))


def _printed(call: Callable[..., list[mx.array]], inputs: list[mx.array]) -> str:
    """What goes to standard output while the call is exported; MLX prints below Python."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as out:
        kept = os.dup(1)
        os.dup2(out.fileno(), 1)
        try:
            mx.export_function(str(Path(folder) / "kernel.mlxfn"), call, *inputs)
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        out.seek(0)
        return out.read()
