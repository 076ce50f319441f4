"""SHA-256 digests that identify a checkpoint, or a pair of them, by content.

Equal checkpoints in different folders have equal digests. A digest is the key of a speed profile;
a store of training texts records its target's, a training run that of the drafter it began with.
Large weight files are sampled and not read whole, because trained weights differ everywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import InputError
from ..system.files import read_json
from .precision import choose_precision
from .safetensors import weight_files

_BLOCK = 64 * 1024
_BLOCKS = 64
_LONGEST_HEADER = 100_000_000


def fingerprint(
    target: Path | str,
    drafter: Path | None,
    precision: str,
    gamma: int,
    draft_vocabulary: int,
    caches: Mapping[str, Any] | None = None,
    adapter: Path | None = None,
    windows: Sequence[int] = (),
) -> str:
    """Key of a speed profile, a SHA-256 in hexadecimal.

    It covers sampled weights of both checkpoints, the settings, the device and MLX's version.

    Args:
        target, drafter: checkpoint folders; their names and those of their files do not count. A
            string is the digest of a target that has no folder; None stands for no drafter.
        precision: as `load` takes it; "auto" gives the key of the precision that it chooses.
        gamma: tokens of a block.
        draft_vocabulary: number of tokens that drafts are chosen from.
        caches: settings of the target's caches by name; None for those of `load`.
        adapter: folder of the target's adapter; None without one.
        windows: `attended` of the drafter's config, which `load` may have narrowed.

    Raises:
        InputError: a folder has no weights, a file is cut off, a config is not a JSON object, or
            the precision is unknown.
    """
    parts = {
        "target": target if isinstance(target, str) else _weights(target),
        "drafter": None if drafter is None else _weights(drafter),
        "quantization": [
            None if isinstance(target, str) else _quantization(target),
            None if drafter is None else _quantization(drafter),
        ],
        "adapter": None if adapter is None else _adapter(adapter),
        "precision": choose_precision(precision),
        "gamma": gamma,
        "draft_vocabulary": draft_vocabulary,
        "windows": list(windows),
        "caches": dict(caches or {}),
        "device": device_name(),
        "mlx": mx.__version__,  # type: ignore[attr-defined]
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def device_name() -> str:
    """The name of MLX's default device, such as "gpu Apple M3 Max" or "cpu AMD EPYC x 8"."""
    kind = "cpu" if mx.default_device().type == mx.DeviceType.cpu else "gpu"
    known = mx.device_info() if hasattr(mx, "device_info") else {}
    name = known.get("device_name") or platform.processor() or platform.machine()
    return f"cpu {name} x {os.cpu_count()}" if kind == "cpu" else f"gpu {name}"


def weights_digest(folder: Path) -> str:
    """SHA-256 over samples of a checkpoint's weight files, in hexadecimal.

    Raises:
        InputError: the folder has no weights, or a file is cut off.
    """
    return hashlib.sha256("".join(_weights(folder)).encode()).hexdigest()


def _weights(folder: Path) -> list[str]:
    # Sorted by content, so that renaming a shard changes nothing.
    return sorted(_digest(path) for path in weight_files(folder))


def _adapter(folder: Path) -> list[object]:
    # A folder may hold the checkpoints of its training too, which nobody reads.
    return [_digest(folder / "adapters.safetensors"), read_json(folder / "adapter_config.json")]


def _digest(path: Path) -> str:
    """SHA-256 of a file's size, its safetensors header and evenly spaced blocks of its bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(size.to_bytes(8, "little"))
        if size <= _BLOCKS * _BLOCK:
            digest.update(file.read())
            return digest.hexdigest()
        length = file.read(8)
        header = int.from_bytes(length, "little")
        if not 0 < header <= min(size - 8, _LONGEST_HEADER):
            found = f"a header of {header} bytes in {size}"
            raise InputError(path, found, "a whole safetensors file")
        digest.update(length + file.read(header))
        for i in range(_BLOCKS):
            file.seek(i * (size - _BLOCK) // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def _quantization(folder: Path) -> object:
    config = read_json(folder / "config.json")
    return [config.get("quantization"), config.get("quantization_config")]
