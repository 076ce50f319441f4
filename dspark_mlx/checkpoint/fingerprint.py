"""What checkpoints are told apart by, made of content: equal ones in other folders share it.

It keys speed profiles, and says which target wrote a store of texts and which drafter a run began
with. Large weight files are sampled, not read whole: trained weights differ everywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path

import mlx.core as mx

from ..errors import InputError
from ..system.files import read_json
from .precision import choose_precision
from .safetensors import weight_files

_BLOCK = 64 * 1024
_BLOCKS = 64
_LONGEST_HEADER = 100_000_000


def fingerprint(
    target: Path, drafter: Path, precision: str, gamma: int, draft_vocabulary: int
) -> str:
    """The key of a pair as it is held here: content of both folders, settings, device, MLX.

    Args:
        target, drafter: checkpoint folders; their names and those of their files do not count.
        precision: as `load` takes it; "auto" and what it stands for here are the same.
        gamma: tokens of a block.
        draft_vocabulary: tokens that drafts are chosen from.

    Raises:
        InputError: a folder without weights, a file cut off, a config that is no JSON object, an
            unknown precision.
    """
    parts = {
        "target": _weights(target),
        "drafter": _weights(drafter),
        "quantization": [_quantization(target), _quantization(drafter)],
        "precision": choose_precision(precision),
        "gamma": gamma,
        "draft_vocabulary": draft_vocabulary,
        "device": device_name(),
        "mlx": mx.__version__,  # type: ignore[attr-defined]
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def device_name() -> str:
    """The device that MLX computes on by default, as "gpu Apple M3 Max" or "cpu AMD EPYC x 8"."""
    kind = "cpu" if mx.default_device().type == mx.DeviceType.cpu else "gpu"
    known = mx.device_info() if hasattr(mx, "device_info") else {}
    name = known.get("device_name") or platform.processor() or platform.machine()
    return f"cpu {name} x {os.cpu_count()}" if kind == "cpu" else f"gpu {name}"


def weights_digest(folder: Path) -> str:
    """What tells a checkpoint from others: a SHA-256 over its weight files as sampled here.

    Raises:
        InputError: a folder without weights, or a file cut off.
    """
    return hashlib.sha256("".join(_weights(folder)).encode()).hexdigest()


def _weights(folder: Path) -> list[str]:
    # Sorted by content: a renamed shard is the same shard.
    return sorted(_digest(path) for path in weight_files(folder))


def _digest(path: Path) -> str:
    """SHA-256 of a file's size, its safetensors header and evenly spaced blocks of it."""
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
