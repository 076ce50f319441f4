"""Converts a published drafter to the canonical folder: config.json and model.safetensors."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from tqdm import tqdm

from ..calibration.by_temperature import (
    Calibrations,
    read_calibrations,
    write_calibrations,
)
from ..calibration.sts import identity
from ..checkpoint.base_config import FORMAT, CanonicalConfig
from ..checkpoint.frequent_tokens import read_ranking, write_ranking
from ..checkpoint.hub import checkpoint_place
from ..checkpoint.layout import check_headers, check_values
from ..checkpoint.quantization import (
    AFFINE,
    Quantization,
    check_quantization,
    choose_quantization,
    stays_plain,
)
from ..checkpoint.safetensors import read_tensors
from ..errors import InputError, one_line
from ..system.files import check_apart, write_json
from ..system.staging import staged_folder
from .packagings import find_packaging, refuse_unsupported
from .packagings.source import canonical_name
from .published import StoredMatrix, Tensor, read_published
from .shards import ShardWriter

_TEMPERATURES = ("sts_temperatures", "confidence_temperatures")


@dataclass(frozen=True)
class Settings:
    """How a canonical folder is written; for its fields see `convert_drafter`.

    Raises:
        InputError: MLX's quantisation lacks the bits or the group size.
    """

    quantize: bool = False
    bits: int = 4
    group_size: int = 64
    exceptions: Mapping[str, int | None] | None = None
    overwrite: bool = False
    finish: Callable[[Path], None] | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.quantize:
            others = (self.exceptions or {}).values()
            for bits in [self.bits, *(bits for bits in others if bits is not None)]:
                check_quantization("quantisation", bits, self.group_size)


def convert_drafter(
    source: Path,
    destination: Path,
    *,
    quantize: bool = False,
    q_bits: int = 4,
    q_group_size: int = 64,
    q_exceptions: dict[str, int | None] | None = None,
    keep_embeddings: bool = False,
    target_layers: int | None = None,
    overwrite: bool = False,
    finish: Callable[[Path], None] | None = None,
    progress: bool = True,
) -> CanonicalConfig:
    """Convert a drafter checkpoint to a canonical folder.

    Args:
        source: folder with config.json and safetensors, or a .gguf file, in any known packaging.
        destination: folder to make; it appears whole or not at all.
        quantize: whether to quantise the matrices (MLX affine); the confidence head never is.
            Without it, matrices that the source has quantised stay as they are where MLX's affine
            mode can hold them bit for bit.
        q_bits: 2, 3, 4, 5, 6 or 8 bits per weight.
        q_group_size: weights that share a scale: 32, 64 or 128.
        q_exceptions: other bits, or None for plain, by a tensor's name or a part of it
            ("markov_head", "layers.0.mlp"). Where several parts are in a name, the longest counts.
        keep_embeddings: whether to keep stored copies of the target's embedding and head.
        target_layers: number of layers of the target, for checkpoints that do not say it.
        overwrite: whether to replace an existing folder.
        finish: called with the complete folder before it gets its name; if it raises an exception,
            nothing is left behind.
        progress: whether to show a progress bar.

    Returns:
        The canonical configuration that was written.

    Raises:
        InputError: the checkpoint or a setting cannot be used; nothing was written.
    """
    settings = Settings(quantize, q_bits, q_group_size, q_exceptions, overwrite, finish, progress)
    source = checkpoint_place(source)
    check_apart(source, destination)
    raw, config, renamed = _translated(source, keep_embeddings, target_layers)
    calibrations = _shipped_calibration(raw, config.gamma, source)
    ranking = read_ranking(source, config.vocab_size) if raw.get("format") == FORMAT else ()
    return write_drafter(config, renamed, source, destination, settings, calibrations, ranking)


def read_as_canonical(source: Path) -> tuple[CanonicalConfig, dict[str, mx.array]]:
    """What the canonical folder of a published drafter would hold; nothing is written.

    Matrices stay packed where the canonical folder can hold them so.

    Args:
        source: see `convert_drafter`.

    Raises:
        InputError: the checkpoint cannot be used.
    """
    _, config, renamed = _translated(checkpoint_place(source), keep_embeddings=False)
    config = _as_packed(config, renamed, source)
    matrices, found = config.matrix_shapes().keys(), dict[str, mx.array]()
    for name, tensor in renamed.items():
        found |= _parts(config, matrices, name, tensor, source, keep=True)
    return config, found


def _translated(
    source: Path, keep_embeddings: bool, target_layers: int | None = None
) -> tuple[dict[str, Any], CanonicalConfig, dict[str, Tensor]]:
    """A drafter's config, the canonical one, and its tensors by their canonical names."""
    raw, tensors = read_published(
        source, lambda config, shapes: refuse_unsupported(config, shapes, source)
    )
    if target_layers is not None and raw.get("num_target_layers") is None:
        raw = raw | {"num_target_layers": target_layers}
    if auto_map := raw.get("auto_map"):
        # The checkpoint's code is never run: its packaging must be one that is known here.
        tqdm.write(one_line(f"{source}: ignoring the Python code of auto_map ({auto_map})"))
    tensors = _without_prefixes(tensors, source)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    packaging = find_packaging(raw, shapes, source)
    config = packaging.to_drafter_config(raw, shapes, source, keep_embeddings=keep_embeddings)
    renamed: dict[str, Tensor] = {}
    for old, new in packaging.rename(config, list(tensors)).items():
        if new is not None:
            tensor = tensors[old]
            # Packed matrices need no adapting; they are read when they are written.
            if isinstance(tensor, mx.array):
                tensor = packaging.adapt(raw, new, tensor)
            renamed[new] = tensor
    return raw, config, renamed


def write_drafter(
    config: CanonicalConfig,
    tensors: dict[str, Tensor],
    source: Path,
    destination: Path,
    settings: Settings,
    calibrations: Calibrations | None = None,
    ranking: tuple[int, ...] = (),
) -> CanonicalConfig:
    """Write a canonical folder; returns its configuration, quantisation included.

    Args:
        config: without quantisation.
        tensors: the folder's, by their canonical names; emptied while they are written.
        source: what they were read from, for messages.
        destination: folder to make; it appears whole or not at all.
        settings: see `Settings`.
        calibrations, ranking: what comes with the drafter; None and () without.

    Raises:
        InputError: a tensor cannot be used, or a setting does not fit; nothing was written.
    """
    config = _as_packed(config, tensors, source)
    if settings.quantize:
        asked = (settings.bits, settings.group_size, settings.exceptions)
        chosen = choose_quantization(config.matrix_shapes(), *asked, source)
        config = dataclasses.replace(config, quantization=chosen)
    with staged_folder(destination, overwrite=settings.overwrite) as folder:
        _write(config, tensors, folder, source, settings)
        if calibrations:
            write_calibrations(folder, calibrations)
        if ranking:
            write_ranking(folder, ranking)
        if settings.finish:
            settings.finish(folder)
    return config


def _as_packed(
    config: CanonicalConfig, tensors: Mapping[str, Tensor], source: Path
) -> CanonicalConfig:
    """The configuration with the quantisation that the tensors come with, which are checked."""
    check_headers(config, tensors, source)
    kept = _kept_quantization(tensors)
    return dataclasses.replace(config, quantization=kept) if kept else config


def _without_prefixes(tensors: dict[str, Tensor], where: Path) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        canonical = canonical_name(name)
        if canonical in named:
            raise InputError(where, f"{canonical}, also as {name}", "each tensor once")
        if canonical is not None:
            named[canonical] = tensor
    return named


def _kept_quantization(tensors: Mapping[str, Tensor]) -> Quantization | None:
    """The quantisation of the matrices that stay packed as in the source; None without any.

    Its form is that of most matrices; the others are exceptions.
    """
    forms = {
        name.removesuffix(".weight"): (tensor.bits, tensor.group_size, tensor.mode)
        if isinstance(tensor, StoredMatrix) and tensor.bits
        else None
        for name, tensor in tensors.items()
        if len(tensor.shape) == 2
    }
    forms |= dict.fromkeys(filter(stays_plain, forms), None)
    usual = Counter(form for form in forms.values() if form).most_common(1)
    if not usual:
        return None
    (whole, _), *_ = usual
    exceptions = {name: _entry(form) for name, form in forms.items() if form != whole}
    bits, group_size, mode = whole
    return Quantization(bits, group_size, exceptions, mode)


def _entry(form: tuple[int, int, str] | None) -> dict[str, Any] | None:
    if form is None:
        return None
    bits, group_size, mode = form
    entry = {"bits": bits, "group_size": group_size}
    return entry if mode == AFFINE else {**entry, "mode": mode}


def _write(
    config: CanonicalConfig,
    tensors: dict[str, Tensor],
    folder: Path,
    source: Path,
    settings: Settings,
) -> None:
    """Read, check, quantise and write the tensors, one after the other."""
    writer = ShardWriter(folder)
    names, hidden, keep = sorted(tensors), not settings.progress, not settings.quantize
    matrices = config.matrix_shapes().keys()
    for name in tqdm(names, desc="Converting", unit="tensor", disable=hidden, leave=False):
        for key, part in _parts(config, matrices, name, tensors.pop(name), source, keep):
            writer.add(key, part)
    writer.close()
    check_headers(config, read_tensors(folder), folder)
    write_json(folder / "config.json", config.to_dict())


def _parts(
    config: CanonicalConfig,
    matrices: Collection[str],
    name: str,
    tensor: Tensor,
    source: Path,
    keep: bool,
) -> list[tuple[str, mx.array]]:
    """A tensor as it is stored: itself, or the packed words, scales and biases of a matrix."""
    base = name.removesuffix(".weight")
    keys = (name, f"{base}.scales", f"{base}.biases")
    quantized = None
    if config.quantization is not None and base in matrices:
        quantized = config.quantization.of(base)
    if keep and quantized is not None and isinstance(tensor, StoredMatrix):
        parts = list(zip(keys, tensor.packed(), strict=False))
        for key, part in parts:
            check_values(config, key, part, source)
        return parts
    values = tensor if isinstance(tensor, mx.array) else tensor.values()
    check_values(config, name, values, source)
    if quantized is None:
        return [(name, values)]
    bits, group_size = quantized
    packed, *scales = mx.quantize(values, group_size=group_size, bits=bits)
    if isinstance(tensor, StoredMatrix) and mx.issubdtype(tensor.scale_type, mx.floating):
        # The values were float32 only to be exact; scales get the source's type.
        scales = [part.astype(tensor.scale_type) for part in scales]
    return list(zip(keys, (packed, *scales), strict=True))


def _shipped_calibration(raw: dict[str, Any], gamma: int, source: Path) -> Calibrations | None:
    """The calibrations that a checkpoint comes with; None where it has none.

    A published config has STS temperatures under one of two names; a canonical folder has
    calibrations.

    Raises:
        InputError: the temperatures are not one positive number for each slot; or see
            `read_calibrations`.
    """
    if raw.get("format") == FORMAT:
        return read_calibrations(source, gamma)
    nested = raw.get("dflash_config")
    values = raw | (nested if isinstance(nested, dict) else {})
    name = next((n for n in _TEMPERATURES if values.get(n) is not None), None)
    if name is None:
        return None
    found = values[name]
    numbers = isinstance(found, list) and all(type(t) in (int, float) for t in found)
    if not numbers or len(found) != gamma or not all(0 < t < math.inf for t in found):
        expected = f"{gamma} positive numbers"
        raise InputError(source / "config.json", f"{name} {found!r}", expected)
    fitted = dataclasses.replace(identity(gamma), temperatures=tuple(map(float, found)))
    return Calibrations({0.0: fitted})
