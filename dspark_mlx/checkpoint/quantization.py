"""How a drafter's stored weights are quantised: MLX's affine mode, with exceptions by tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError

QUANTIZED_BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
# The confidence is one dot product per token; its 0.1 % of the weights are worth keeping exact.
NEVER_QUANTIZED = frozenset({"confidence_head.proj"})


@dataclass(frozen=True)
class Quantization:
    """Affine quantisation of the stored weights, as MLX has it.

    Attributes:
        bits: bits per weight.
        group_size: weights that share a scale and a bias.
        exceptions: tensors with other settings, by name (without `.weight`): their own
            `{"bits", "group_size"}`, or None where the tensor is not quantised.
    """

    bits: int
    group_size: int
    exceptions: dict[str, dict[str, int] | None] = dataclasses.field(default_factory=dict)

    def of(self, name: str) -> tuple[int, int] | None:
        """Bits and group size of the matrix `name` (without `.weight`); None for a plain one."""
        entry: dict[str, int] | None = {"bits": self.bits, "group_size": self.group_size}
        entry = self.exceptions.get(name, entry)
        return None if entry is None else (entry["bits"], entry["group_size"])

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
    if set(data) != {"bits", "group_size", "exceptions"}:
        raise InputError(where, f"quantization {sorted(data)}", "bits, group_size, exceptions")
    exceptions = data["exceptions"]
    if not isinstance(exceptions, dict):
        raise InputError(where, f"quantization exceptions {exceptions!r}", "an object")
    check_quantization(where, data["bits"], data["group_size"])
    for name, entry in exceptions.items():
        if entry is None:
            continue
        if not isinstance(entry, dict) or set(entry) != {"bits", "group_size"}:
            found = f"quantization exception {name}: {entry!r}"
            raise InputError(where, found, "null, or an object of bits and group_size")
        check_quantization(where, entry["bits"], entry["group_size"])
    return Quantization(data["bits"], data["group_size"], exceptions)


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
    for name in matrices.keys() - NEVER_QUANTIZED:
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


def check_quantization(where: Path | str, bits: object, group_size: object) -> None:
    """Refuse bits and group sizes that MLX's affine quantisation lacks.

    Raises:
        InputError: `bits` or `group_size` is none of the supported ones.
    """
    if bits not in QUANTIZED_BITS:
        raise InputError(where, f"{bits} bits", f"one of {QUANTIZED_BITS}")
    if group_size not in GROUP_SIZES:
        raise InputError(where, f"group size {group_size}", f"one of {GROUP_SIZES}")
