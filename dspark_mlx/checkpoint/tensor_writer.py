"""Writes tensors to a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

from ..system.system_errors import writing


def write_tensors(path: Path, tensors: Mapping[str, mx.array]) -> None:
    """Write a safetensors file into a folder of `system.staging`, which appears whole.

    Raises:
        InputError: the disk is full, or the file cannot be written.
    """
    # MLX writes to an open file, so that Python reports a full disk with its reason; given a name,
    # MLX only says "[write] Unable to write".
    with writing(path), path.open("wb") as file:
        mx.save_safetensors(file, dict(tensors), {"format": "mlx"})
