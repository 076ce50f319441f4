"""Writes a drafter's canonical folder: config.json, model.safetensors and what comes with it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from tqdm import tqdm

from ..calibration.by_temperature import Calibrations, write_calibrations
from ..checkpoint.base_config import CanonicalConfig
from ..checkpoint.frequent_tokens import write_ranking
from ..checkpoint.layout import check_headers, check_values
from ..checkpoint.quantization import (
    AFFINE,
    Quantization,
    check_quantization,
    choose_quantization,
    stays_plain,
)
from ..checkpoint.safetensors import read_tensors
from ..system.files import write_json
from ..system.staging import staged_folder
from .published import StoredMatrix, Tensor
from .shards import ShardWriter


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
    config = as_packed(config, tensors, source)
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


def as_packed(
    config: CanonicalConfig, tensors: Mapping[str, Tensor], source: Path
) -> CanonicalConfig:
    """The configuration with the quantisation that the tensors come with, which are checked."""
    check_headers(config, tensors, source)
    kept = _kept_quantization(tensors)
    return dataclasses.replace(config, quantization=kept) if kept else config


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
        for key, part in stored_parts(config, matrices, name, tensors.pop(name), source, keep):
            writer.add(key, part)
    writer.close()
    check_headers(config, read_tensors(folder), folder)
    write_json(folder / "config.json", config.to_dict())


def stored_parts(
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
