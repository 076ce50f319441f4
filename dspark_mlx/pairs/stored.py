"""Finds the folders of targets and drafters, and converts them where they need it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from dspark_mlx.convert.drafter import convert_drafter, read_as_canonical
from dspark_mlx.convert.packagings import deepseek_v4
from dspark_mlx.convert.target import convert_target

from ..calibration.by_temperature import Calibrations, read_calibrations
from ..checkpoint.base_config import FORMAT, CanonicalConfig
from ..checkpoint.frequent_tokens import read_ranking
from ..checkpoint.hub import checkpoint_place, is_gguf, resolve
from ..checkpoint.layout import check_tensors
from ..checkpoint.safetensors import read_tensors
from ..drafters.methods import read_config
from ..system.files import cache_folder, read_json
from ..system.staging import made_once
from ..system.system_errors import from_system


@dataclass(frozen=True)
class StoredDrafter:
    """The content of a canonical drafter folder.

    Attributes:
        folder: path of the folder.
        config: the drafter's configuration.
        tensors: the drafter's tensors, checked.
        calibrations: calibrations of the confidence head; None where the folder has none,
            and where they were not read.
        ranking: the target's most frequent tokens, the most frequent first; empty where the folder
            has none.
    """

    folder: Path
    config: CanonicalConfig
    tensors: dict[str, mx.array]
    calibrations: Calibrations | None
    ranking: tuple[int, ...]


def read_drafter(drafter: str | Path, calibrated: bool = True) -> StoredDrafter:
    """The checked content of a drafter's folder, which is converted first where it needs it.

    Args:
        drafter: a folder, a GGUF file or a Hub id, in any known packaging.
        calibrated: False does not read the calibrations, which a wrong configuration does not fit.

    Raises:
        InputError: see `load`.
    """
    folder, embedded = _drafter_folder(drafter)
    if embedded:
        config, tensors = read_as_canonical(folder)
    else:
        config = read_config(read_json(folder / "config.json"), folder / "config.json")
        tensors = read_tensors(folder)
    check_tensors(config, tensors, folder)
    calibrations = read_calibrations(folder, config.gamma) if calibrated else None
    ranking = read_ranking(folder, config.vocab_size)
    return StoredDrafter(folder, config, tensors, calibrations, ranking)


def target_folder(model: str | Path) -> Path:
    """The folder of a target; a GGUF file is converted once into the cache folder.

    Args:
        model: a folder, a GGUF file or a Hub id.

    Raises:
        InputError: there is no such checkpoint, or the file cannot be converted.
    """
    path = checkpoint_place(resolve(model))
    if is_gguf(path):
        return _converted(path, "targets", lambda to: convert_target(path, to))
    return path


def holds_drafter(config: dict[str, Any]) -> bool:
    """Whether a target's checkpoint has its drafter inside, by the content of its config.json."""
    return deepseek_v4.is_embedded(config)


def _drafter_folder(drafter: str | Path) -> tuple[Path, bool]:
    """The folder to read, and whether it is a target's with the drafter inside.

    Such a drafter is read where it is: a converted copy would take gigabytes once more.
    """
    path = checkpoint_place(resolve(drafter))
    config = read_json(path / "config.json") if path.is_dir() else {}
    if config.get("model_type") in deepseek_v4.MODEL_TYPES:
        return path, True
    if config.get("format") == FORMAT:
        return path, False
    return _converted(path, "drafters", lambda to: convert_drafter(path, to)), False


def _identity(file: Path) -> tuple[str, int, int]:
    """What tells a file's content from another's.

    Raises:
        InputError: a link that leads nowhere, or to itself.
    """
    try:
        status = file.stat()
    except OSError as error:
        raise from_system(error, file) from error
    return os.path.realpath(file), status.st_size, status.st_mtime_ns


def _converted(source: Path, kind: str, convert: Callable[[Path], object]) -> Path:
    """The converted folder of `source` in the cache, made if it does not exist yet."""
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    stats = [_identity(file) for file in files]
    # A changed file changes the key, so an outdated conversion is never used.
    key = hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
    folder = cache_folder() / kind / f"{source.stem}-{key}"
    return made_once(folder, convert)
