"""Folders in the canonical format itself, which training writes, to be quantised or uploaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...checkpoint.base_config import FORMAT, CanonicalConfig
from ...drafters.methods import read_config
from ...errors import InputError
from .source import Shapes

NAME = "dspark_mlx"


def matches(config: dict[str, Any], shapes: Shapes) -> bool:
    """True for a config with the canonical format's name."""
    return config.get("format") == FORMAT


def to_drafter_config(
    config: dict[str, Any], shapes: Shapes, where: Path, *, keep_embeddings: bool
) -> CanonicalConfig:
    """The folder's configuration, unchanged.

    Raises:
        InputError: `read_config` refuses it, or the weights are quantised.
    """
    found = read_config(config, where / "config.json")
    if found.quantization is not None:
        bits = f"a canonical folder with weights of {found.quantization.bits} bits"
        hint = "load takes it as it is. For other bits begin with what it was made from."
        raise InputError(where, bits, "one with plain weights, to be quantized", hint)
    return found


def rename(config: CanonicalConfig, names: Sequence[str]) -> dict[str, str | None]:
    """Maps every tensor name to itself."""
    return {name: name for name in names}


def adapt(config: Mapping[str, Any], name: str, tensor: mx.array) -> mx.array:
    """The tensor, unchanged."""
    return tensor
