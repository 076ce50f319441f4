"""Converts a published drafter to the canonical folder: config.json and model.safetensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from tqdm import tqdm

from ..calibration.by_temperature import (
    Calibrations,
    read_calibrations,
)
from ..calibration.sts import identity
from ..checkpoint.base_config import FORMAT, CanonicalConfig
from ..checkpoint.frequent_tokens import read_ranking
from ..checkpoint.hub import checkpoint_place
from ..drafters.gemma4_assistant.config import Gemma4AssistantConfig
from ..errors import InputError, one_line
from ..numbers import check_whole
from ..system.files import check_apart
from .canonical_folder import Settings, as_packed, stored_parts, write_drafter
from .head_checkpoint import is_lone_head
from .mtp import convert_mtp
from .packagings import deepseek_v4, find_packaging, refuse_unsupported
from .packagings.gemma4_assistant import KV_SHARED
from .packagings.names import canonical_name
from .published import Tensor, read_published

_DEPTH_FLAG, _SHARED_FLAG = "--target-layers", "--kv-shared-layers"
_TEMPERATURES = ("sts_temperatures", "confidence_temperatures")


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
    kv_shared_layers: int | None = None,
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
        target_layers: number of layers of the target, for checkpoints that do not say it. What
            they say otherwise, or do not use, is refused.
        kv_shared_layers: how many of them share keys and values of layers before them, likewise.
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
    if target_layers is not None:
        target_layers = check_whole(_DEPTH_FLAG, target_layers, 1)
    if kv_shared_layers is not None:
        kv_shared_layers = check_whole(_SHARED_FLAG, kv_shared_layers, 0)
    source = checkpoint_place(source)
    check_apart(source, destination)
    if is_lone_head(source):
        refuse_said(target_layers, kv_shared_layers, "none for a prediction head")
        return convert_mtp(source, destination, keep_embeddings=keep_embeddings, settings=settings)
    raw, config, renamed = _translated(source, keep_embeddings, target_layers, kv_shared_layers)
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
    config = as_packed(config, renamed, source)
    matrices, found = config.matrix_shapes().keys(), dict[str, mx.array]()
    for name, tensor in renamed.items():
        found |= stored_parts(config, matrices, name, tensor, source, keep=True)
    return config, found


def _translated(
    source: Path,
    keep_embeddings: bool,
    target_layers: int | None = None,
    kv_shared_layers: int | None = None,
) -> tuple[dict[str, Any], CanonicalConfig, dict[str, Tensor]]:
    """A drafter's config, the canonical one, and its tensors by their canonical names."""
    raw, tensors = read_published(
        source, lambda config, shapes: refuse_unsupported(config, shapes, source)
    )
    said = {"num_target_layers": target_layers, KV_SHARED: kv_shared_layers}
    if raw.get("format") != FORMAT:  # whose keys are its own
        raw = raw | {k: v for k, v in said.items() if v is not None and raw.get(k) is None}
    if auto_map := raw.get("auto_map"):
        # The checkpoint's code is never run: its packaging must be one that is known here.
        tqdm.write(one_line(f"{source}: ignoring the Python code of auto_map ({auto_map})"))
    tensors = _without_prefixes(tensors, source)
    deepseek_v4.check_head(raw, tensors, source)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    packaging = find_packaging(raw, shapes, source)
    config = packaging.to_drafter_config(raw, shapes, source, keep_embeddings=keep_embeddings)
    _check_said(config, target_layers, kv_shared_layers, source)
    renamed: dict[str, Tensor] = {}
    for old, new in packaging.rename(config, list(tensors)).items():
        if new in renamed:
            raise InputError(source, f"{old}, also under another name", f"{new} once")
        if new is not None:
            tensor = tensors[old]
            # Packed matrices need no adapting; they are read when they are written.
            if isinstance(tensor, mx.array):
                tensor = packaging.adapt(raw, new, tensor)
            renamed[new] = tensor
    return raw, config, renamed


def refuse_said(target_layers: int | None, kv_shared_layers: int | None, expected: str) -> None:
    """Refuse what is said of a target where it is not read.

    Raises:
        InputError: a number is not None.
    """
    for flag, said in ((_DEPTH_FLAG, target_layers), (_SHARED_FLAG, kv_shared_layers)):
        if said is not None:
            raise InputError(flag, said, expected)


def _check_said(
    config: CanonicalConfig, target_layers: int | None, kv_shared_layers: int | None, where: Path
) -> None:
    """Refuse what is said of the target and what the checkpoint says otherwise, or cannot use."""
    depth, shared = config.target_num_layers, 0
    if isinstance(config, Gemma4AssistantConfig):
        shared = depth - 1 - config.full_layer
    expected = [f"{n}, as {where} has it" if n else "none: it is not used" for n in (depth, shared)]
    refuse_said(None if target_layers == depth else target_layers, None, expected[0])
    refuse_said(None, None if kv_shared_layers == shared else kv_shared_layers, expected[1])


def _without_prefixes(tensors: dict[str, Tensor], where: Path) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        canonical = canonical_name(name)
        if canonical in named:
            raise InputError(where, f"{canonical}, also as {name}", "each tensor once")
        if canonical is not None:
            named[canonical] = tensor
    return named


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
