"""What a conversion writes, known from the headers of the source alone.

The target gets the names of its modules, with the experts of a layer stacked. The head keeps its
released names: its packaging reads them, packed in MLX's forms or in the release's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...checkpoint.block_floats import BLOCKS, GROUP
from ...checkpoint.quantization import AFFINE
from ...checkpoint.safetensors import TensorHeader
from ...checkpoint.tensor_writer import Planned
from ...deepseek_v4.weights import expert_name, module_name
from ...errors import InputError
from ..packagings.deepseek_v4 import COPIES
from .forms import FP4, FP8, Form, Rules

HEAD = "mtp."
"""What names of the head's tensors begin with."""

SHARD_BYTES = 2 << 30
"""Bytes after which a shard ends; its last matrix may exceed this. It is never held in memory."""

# MLX stores FP8 and its scales as bytes.
_CODES = {"I8": FP4, "F8_E4M3": FP8, "U8": FP8}
_SCALES = ("F8_E8M0", "U8")
_FLOATING = ("BF16", "F16", "F32")
_PLAIN = (*_FLOATING, "I32", "I64")


@dataclass(frozen=True)
class Output:
    """A matrix or another tensor of the new folder, with all parts that it is stored in.

    Attributes:
        name: its name there; of a matrix without `.weight`.
        sources: names of the tensors that it is made from, of a stack one an expert.
        parts: what is written, by name.
        form: its form in the new folder; None for a plain one.
        stored: its form in the source.
        dtype: type of its numbers, or of its scales where they are floating.
        columns: length of its rows; 0 for what is no matrix.
    """

    name: str
    sources: tuple[str, ...]
    parts: dict[str, Planned]
    form: Form | None
    stored: Form | None
    dtype: str
    columns: int

    @property
    def nbytes(self) -> int:
        """Bytes of all its parts."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def working_bytes(self) -> int:
        """Bytes that are held while one source of it is converted, about."""
        own = self.nbytes // len(self.sources)
        if self.form == self.stored or self.form is None:
            return 2 * own
        weights = 8 * own // self.form.bits
        return own + 3 * weights  # as it is stored, and in BF16


@dataclass(frozen=True)
class Source:
    """The tensors of the released checkpoint.

    Attributes:
        folder: where they are.
        headers: their headers.
    """

    folder: Path
    headers: Mapping[str, TensorHeader]

    def form_of(self, name: str) -> Form | None:
        """The form of a matrix whose `.weight` has this name; None for plain numbers.

        Raises:
            InputError: the type is none of a release's, or its scale does not fit.
        """
        header = self.headers[name]
        form = _CODES.get(header.dtype)
        if form is None:
            if header.dtype in _FLOATING:
                return None
            raise InputError(f"{self.folder}: {name}", header.dtype, f"{', '.join(_CODES)} or BF16")
        scale = self.headers.get(scale_of(name))
        rows, columns = header.shape[0], self.columns(name)
        wanted = [(rows, columns // GROUP)]
        if form == FP8:
            wanted = [(-(-rows // b), -(-columns // b)) for b in BLOCKS]
        fits = scale is not None and scale.dtype in _SCALES and scale.shape in wanted
        if not fits or columns % GROUP:
            found = f"a scale {scale.dtype} {list(scale.shape)}" if scale else "no scale"
            where = f"{self.folder}: {name}"
            raise InputError(where, f"{found} for {list(header.shape)}", f"one of {wanted}")
        return form

    def columns(self, name: str) -> int:
        """Weights in a row of a matrix."""
        header = self.headers[name]
        return header.shape[-1] * (2 if header.dtype == "I8" else 1)


def scale_of(weight: str) -> str:
    """The name of a matrix' scale."""
    return f"{weight.removesuffix('.weight')}.scale"


def planned_outputs(
    source: Source, rules: Rules, dtype: str | None, experts: int, head_only: bool
) -> list[Output]:
    """All that is written, in the order of the names.

    Args:
        source: the release.
        rules: the forms.
        dtype: type of what is BF16 in the release; None keeps it.
        experts: routed experts of a layer of the target.
        head_only: whether the target is left out.

    Raises:
        InputError: a type or a shape is none of a release's, experts are missing, or a rule has
            nothing to act on.
    """
    groups = _grouped(source.headers, experts, source.folder, head_only)
    outputs = [_output(source, name, names, rules, dtype) for name, names in groups.items()]
    rules.check([each.name for each in outputs if each.columns])
    return sorted(outputs, key=lambda each: _in_order(each.name))


def shards_of(outputs: Iterable[Output]) -> list[list[Output]]:
    """The outputs in shards."""
    shards: list[list[Output]] = [[]]
    held = 0
    for output in outputs:
        if held >= SHARD_BYTES:
            shards.append([])
            held = 0
        shards[-1].append(output)
        held += output.nbytes
    return shards


def _grouped(
    headers: Mapping[str, TensorHeader], experts: int, where: Path, head_only: bool
) -> dict[str, tuple[str, ...]]:
    """The sources of each output, by its name."""
    found: dict[str, dict[int, str]] = {}
    for name in headers:
        is_scale = name.endswith(".scale") and f"{name.removesuffix('.scale')}.weight" in headers
        match = re.fullmatch(r"mtp\.\d+\.(.+)", name)
        if is_scale or (match and match[1].startswith(COPIES)) or (head_only and not match):
            continue
        own = name if match else module_name(name)
        index, new = (0, name) if match else expert_name(own) or (0, own)
        if not match and index in found.get(new, {}):
            raise InputError(where, f"{name} and another for {new}", "each tensor once")
        found.setdefault(new, {})[index] = name
    for new, parts in found.items():
        if _is_stack(new, list(parts.values())) and sorted(parts) != list(range(experts)):
            raise InputError(
                where, f"{len(parts)} tensors for {new}", f"those of {experts} experts"
            )
    return {new: tuple(parts[i] for i in sorted(parts)) for new, parts in found.items()}


def _is_stack(name: str, sources: Sequence[str]) -> bool:
    return name != sources[0] and expert_name(module_name(sources[0])) is not None


def _output(
    source: Source, name: str, names: tuple[str, ...], rules: Rules, dtype: str | None
) -> Output:
    first = source.headers[names[0]]
    alike = {(source.headers[n].dtype, source.headers[n].shape) for n in names}
    if len(alike) > 1:
        found = f"experts of {len(alike)} types or shapes for {name}"
        raise InputError(source.folder, found, "experts that are alike")
    stack = (len(names),) if _is_stack(name, names) else ()
    if not name.endswith(".weight") or len(first.shape) != 2:
        kind = dtype if dtype and first.dtype == "BF16" else first.dtype
        if kind not in _PLAIN:
            raise InputError(f"{source.folder}: {name}", kind, f"one of {', '.join(_PLAIN)}")
        parts = {name: Planned(kind, (*stack, *first.shape))}
        return Output(name, names, parts, None, None, kind, 0)
    (stored,) = {source.form_of(n) for n in names}
    base, columns = name.removesuffix(".weight"), source.columns(names[0])
    form = rules.of(base, columns, stored)
    kind = "BF16" if stored else first.dtype
    kind = dtype if dtype and kind == "BF16" else kind
    rows = (*stack, first.shape[0])
    return Output(base, names, _parts(base, rows, columns, form, kind), form, stored, kind, columns)


def _parts(
    base: str, rows: tuple[int, ...], columns: int, form: Form | None, dtype: str
) -> dict[str, Planned]:
    if form is None:
        return {f"{base}.weight": Planned(dtype, (*rows, columns))}
    groups = (*rows, columns // form.group_size)
    parts = {f"{base}.weight": Planned("U32", (*rows, columns * form.bits // 32))}
    if form.mode != AFFINE:
        return parts | {f"{base}.scales": Planned("U8", groups)}
    return parts | {f"{base}.{part}": Planned(dtype, groups) for part in ("scales", "biases")}


def _in_order(name: str) -> list[tuple[int, str]]:
    """Sorts numbers in names as numbers, so that a layer's tensors stand together."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
