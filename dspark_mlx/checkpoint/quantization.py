"""How a drafter's stored weights are quantised, as MLX has it, with exceptions by tensor."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError

QUANTIZED_BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
AFFINE = "affine"
BYTE_SCALES = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}
"""Bits and group size of MLX's modes whose scales are a byte each, without biases."""
# The confidence is one dot product per token; its 0.1 % of the weights are worth keeping exact.
# What embeds noise levels is computed once.
# The numbers that mix copies of a stream and choose experts are few, and errors in them add up.
_NEVER_QUANTIZED = re.compile(r"confidence_head\.proj|noise\.\w+|(.*\.)?hc_\w+\.fn|.*\.ffn\.gate")


@dataclass(frozen=True)
class Quantization:
    """Quantisation of the stored weights, as MLX has it.

    Attributes:
        bits: bits per weight.
        group_size: weights that share a scale.
        exceptions: tensors with other settings, by name (without `.weight`): their own
            `{"bits", "group_size"}`, with "mode" where that is not affine; or None where the tensor
            is not quantised.
        mode: "affine", or one of `BYTE_SCALES`.
    """

    bits: int
    group_size: int
    exceptions: dict[str, dict[str, Any] | None] = dataclasses.field(default_factory=dict)
    mode: str = AFFINE

    def of(self, name: str) -> tuple[int, int] | None:
        """Bits and group size of the matrix `name` (without `.weight`); None for a plain one."""
        entry: dict[str, Any] | None = {"bits": self.bits, "group_size": self.group_size}
        entry = self.exceptions.get(name, entry)
        return None if entry is None else (entry["bits"], entry["group_size"])

    def mode_of(self, name: str) -> str:
        """The mode of a quantised matrix `name` (without `.weight`)."""
        entry = self.exceptions.get(name, {"mode": self.mode})
        return str((entry or {}).get("mode", AFFINE))

    def of_tensor(self, name: str, dimensions: int) -> tuple[int, int] | None:
        """Bits and group size of a tensor by its whole name; None where it stays plain.

        Args:
            name: name of the tensor, `.weight` included.
            dimensions: its number of dimensions; only matrices are quantised.
        """
        matrix = dimensions == 2 and name.endswith(".weight")
        return self.of(name.removesuffix(".weight")) if matrix else None


def read_quantization(where: Path | str, data: dict[str, Any]) -> Quantization:
    """Read a config's "quantization" strictly; `where` names the config in errors.

    Raises:
        InputError: there are other keys, or bits or a group size that MLX lacks.
    """
    if set(data) - {"mode"} != {"bits", "group_size", "exceptions"}:
        expected = "bits, group_size, exceptions, and optionally mode"
        raise InputError(where, f"quantization {sorted(data)}", expected)
    exceptions = data["exceptions"]
    if not isinstance(exceptions, dict):
        raise InputError(where, f"quantization exceptions {exceptions!r}", "an object")
    mode = data.get("mode", AFFINE)
    check_quantization(where, data["bits"], data["group_size"], mode)
    for name, entry in exceptions.items():
        if entry is None:
            continue
        if not isinstance(entry, dict) or set(entry) - {"mode"} != {"bits", "group_size"}:
            found = f"quantization exception {name}: {entry!r}"
            raise InputError(where, found, "null, or an object of bits, group_size and mode")
        check_quantization(where, entry["bits"], entry["group_size"], entry.get("mode", AFFINE))
    return Quantization(data["bits"], data["group_size"], exceptions, mode)


def group_sizes(where: Path | str, rows: Mapping[str, int], asked: int) -> dict[str, int]:
    """The group size of each matrix: the largest up to `asked` that divides its rows.

    Args:
        where: names the checkpoint in errors.
        rows: length of the rows of each matrix, by name.
        asked: the group size that the user asked for.

    Returns:
        The group sizes by name. A matrix whose rows no group size divides is left out: it stays
        plain.

    Raises:
        InputError: every matrix would be left out.
    """
    fitting = [size for size in sorted(GROUP_SIZES, reverse=True) if size <= asked]
    found = {
        name: next((size for size in fitting if not length % size), 0)
        for name, length in rows.items()
    }
    found = {name: size for name, size in found.items() if size}
    if rows and not found:
        lengths = ", ".join(f"{name} of {length}" for name, length in rows.items())
        expected = f"rows that {' or '.join(map(str, fitting))} divides, to be quantised"
        raise InputError(where, f"rows {lengths}", expected)
    return found


def choose_quantization(
    matrices: Mapping[str, tuple[int, ...]],
    bits: int,
    group_size: int,
    by_part: Mapping[str, int | None] | None = None,
    where: Path | str = "quantisation",
) -> Quantization:
    """The quantisation of a drafter's matrices that the user's settings give.

    Args:
        matrices: name and `[out, in]` of each, see `CanonicalConfig.matrix_shapes`.
        bits: bits per weight.
        group_size: weights that share a scale; fewer where rows need it, see `group_sizes`.
        by_part: other bits, or None for plain, by a name or a part of it. Where several parts are
            in a name, the longest counts.
        where: names the drafter in errors.

    Raises:
        InputError: a part is in no name, or no matrix can be quantised.
    """
    by_part = by_part or {}
    for part in by_part:
        if not any(part in name for name in matrices):
            raise InputError("quantisation exception", part, f"part of {', '.join(matrices)}")
    chosen: dict[str, int] = {}
    for name in matrices:
        if stays_plain(name):
            continue
        fitting = [part for part in by_part if part in name]
        own = by_part[max(fitting, key=len)] if fitting else bits
        if own is not None:
            chosen[name] = own
    groups = group_sizes(where, {name: matrices[name][-1] for name in chosen}, group_size)
    exceptions: dict[str, dict[str, int] | None] = {}
    for name in matrices:
        if name not in groups:
            exceptions[name] = None
        elif (chosen[name], groups[name]) != (bits, group_size):
            exceptions[name] = {"bits": chosen[name], "group_size": groups[name]}
    return Quantization(bits, group_size, exceptions)


def stays_plain(name: str) -> bool:
    """Whether a matrix (without `.weight`) is never quantised."""
    return _NEVER_QUANTIZED.fullmatch(name) is not None


def check_quantization(
    where: Path | str, bits: object, group_size: object, mode: object = AFFINE
) -> None:
    """Refuse bits and group sizes that MLX's quantisation lacks.

    Raises:
        InputError: `mode` is none of the supported ones, or it lacks `bits` or `group_size`.
    """
    if mode != AFFINE:
        form = BYTE_SCALES.get(mode) if isinstance(mode, str) else None
        if form is None:
            raise InputError(where, f"mode {mode!r}", f"one of {AFFINE}, {', '.join(BYTE_SCALES)}")
        if (bits, group_size) != form:
            found = f"{bits!r} bits in groups of {group_size!r}"
            raise InputError(where, found, f"{mode}'s {form[0]} in groups of {form[1]}")
        return
    if bits not in QUANTIZED_BITS:
        raise InputError(where, f"{bits} bits", f"one of {QUANTIZED_BITS}")
    if group_size not in GROUP_SIZES:
        raise InputError(where, f"group size {group_size}", f"one of {GROUP_SIZES}")
