"""Writing tensors to a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

from ..system.system_errors import writing


def write_tensors(path: Path, tensors: Mapping[str, mx.array]) -> None:
    """Write a safetensors file; `staging` makes its folder appear whole.

    Raises:
        InputError: the disk is full, or the place cannot be written to.
    """
    # Given a name instead of a file, MLX says of a full disk that "[write] Unable to write".
    with writing(path), path.open("wb") as file:
        mx.save_safetensors(file, dict(tensors), {"format": "mlx"})
