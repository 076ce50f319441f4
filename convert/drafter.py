"""A published drafter checkpoint to the canonical folder: config.json and model.safetensors."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
from tqdm import tqdm

from ..calibration import identity
from ..calibrations import Calibrations, write_calibrations
from ..checkpoint import read_tensors
from ..config import DrafterConfig
from ..errors import InputError
from ..files import read_json, staged_folder, write_json
from ..layout import check_headers, check_values, matrix_shapes
from ..quantization import check_quantization
from .packagings import find_packaging
from .packagings.source import canonical_name
from .shards import ShardWriter

# The chance of survival is one dot product: its 0.1 % of the weights are worth keeping exact.
_TEMPERATURES = ("sts_temperatures", "confidence_temperatures")
_NEVER_QUANTISED = ("confidence_head.proj",)


def convert_drafter(
    source: Path,
    destination: Path,
    *,
    quantize: bool = False,
    q_bits: int = 4,
    q_group_size: int = 64,
    q_exceptions: dict[str, int | None] | None = None,
    keep_embeddings: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> DrafterConfig:
    """Convert a drafter checkpoint folder.

    Args:
        source: folder with config.json and safetensors, in any known packaging.
        destination: folder to make; it appears whole or not at all.
        quantize: store the matrices quantised (MLX affine); the confidence head never is.
        q_bits: 2, 3, 4, 5, 6 or 8 bits per weight.
        q_group_size: weights that share a scale: 32, 64 or 128.
        q_exceptions: bits by tensor name or by part of one ("markov_head", "layers.0.mlp"); None
            keeps those tensors plain. The longest name that fits counts.
        keep_embeddings: keep stored copies of the target's embedding and head.
        overwrite: replace a folder that is there.
        progress: show a progress bar.

    Returns:
        The canonical configuration that was written.

    Raises:
        InputError: the checkpoint or a setting cannot be used; nothing was written.
    """
    if quantize:
        for bits in [q_bits, *(b for b in (q_exceptions or {}).values() if b is not None)]:
            check_quantization("quantisation", bits, q_group_size)
    tensors = read_tensors(source)
    raw = read_json(source / "config.json")
    if auto_map := raw.get("auto_map"):
        # Executable code beside the weights is never run; the packaging must be known by itself.
        tqdm.write(f"{source}: ignoring the Python code that auto_map names ({auto_map})")
    tensors = _without_prefixes(tensors, source)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    packaging = find_packaging(raw, shapes, source)
    config = packaging.to_drafter_config(raw, shapes, source, keep_embeddings=keep_embeddings)
    renamed = {
        new: packaging.adapt(raw, new, tensors[old])
        for old, new in packaging.rename(config, list(tensors)).items()
        if new is not None
    }
    check_headers(config, renamed, source)
    tensors.clear()
    calibrations = _shipped_calibration(raw, config.gamma, source / "config.json")
    if quantize:
        config = _with_quantization(config, q_bits, q_group_size, q_exceptions or {})
    with staged_folder(destination, overwrite=overwrite) as folder:
        _write(config, renamed, folder, source, progress)
        if calibrations:
            write_calibrations(folder, calibrations)
    return config


def _without_prefixes(tensors: dict[str, mx.array], where: Path) -> dict[str, mx.array]:
    named: dict[str, mx.array] = {}
    for name, tensor in tensors.items():
        canonical = canonical_name(name)
        if canonical in named:
            raise InputError(where, f"{canonical}, also as {name}", "each tensor once")
        if canonical is not None:
            named[canonical] = tensor
    return named


def _write(
    config: DrafterConfig,
    tensors: dict[str, mx.array],
    folder: Path,
    source: Path,
    progress: bool,
) -> None:
    """Tensor by tensor: each is read, checked, quantised and written before the next."""
    writer = ShardWriter(folder)
    names = sorted(tensors)
    for name in tqdm(names, desc="Converting", unit="tensor", disable=not progress, leave=False):
        tensor = tensors.pop(name)
        check_values(config, name, tensor, source)
        base = name.removesuffix(".weight")
        quantised = None
        if config.quantization is not None and name.endswith(".weight") and tensor.ndim == 2:
            quantised = config.quantization.of(base)
        if quantised is None:
            writer.add(name, tensor)
            continue
        bits, group_size = quantised
        parts = mx.quantize(tensor, group_size=group_size, bits=bits)
        for key, part in zip((name, f"{base}.scales", f"{base}.biases"), parts, strict=True):
            writer.add(key, part)
    writer.close()
    check_headers(config, read_tensors(folder), folder)
    write_json(folder / "config.json", config.to_dict())


def _shipped_calibration(raw: dict[str, Any], gamma: int, where: Path) -> Calibrations | None:
    """The STS temperatures that a checkpoint brings, under either of the names they go by.

    Raises:
        InputError: they are not one positive number a slot.
    """
    nested = raw.get("dflash_config")
    values = raw | (nested if isinstance(nested, dict) else {})
    name = next((n for n in _TEMPERATURES if values.get(n) is not None), None)
    if name is None:
        return None
    found = values[name]
    numbers = isinstance(found, list) and all(type(t) in (int, float) for t in found)
    if not numbers or len(found) != gamma or not all(0 < t < math.inf for t in found):
        raise InputError(where, f"{name} {found!r}", f"{gamma} positive numbers")
    fitted = dataclasses.replace(identity(gamma), temperatures=tuple(map(float, found)))
    return Calibrations({0.0: fitted})


def _with_quantization(
    config: DrafterConfig, bits: int, group_size: int, by_part: dict[str, int | None]
) -> DrafterConfig:
    exceptions: dict[str, dict[str, int] | None] = {}
    matrices = matrix_shapes(config)
    for part in by_part:
        if not any(part in name for name in matrices):
            raise InputError("quantisation exception", part, f"part of {', '.join(matrices)}")
    for name, (_, columns) in matrices.items():
        fitting = [part for part in by_part if part in name]
        chosen = by_part[max(fitting, key=len)] if fitting else bits
        if name in _NEVER_QUANTISED or chosen is None or columns % group_size:
            exceptions[name] = None
        elif chosen != bits:
            exceptions[name] = {"bits": chosen, "group_size": group_size}
    values = config.to_dict() | {
        "quantization": {"bits": bits, "group_size": group_size, "exceptions": exceptions}
    }
    return DrafterConfig.from_dict(values, "quantisation")
