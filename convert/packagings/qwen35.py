"""Community drafters for Qwen3.5 targets (`Qwen35DSparkModel`), in DeepSpec's layout.

Queries have an output gate behind them, rope turns a part of each head, and norm weights are stored
as their distance from 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...drafters.dspark.config import DSparkConfig
from .rope import read_rope
from .source import Shapes, Source, is_named
from .source import rename as rename

NAME = "Qwen3.5 community"
ARCHITECTURE = "Qwen35DSparkModel"


def matches(config: dict[str, Any], shapes: Shapes) -> bool:
    """By the architecture's name."""
    return is_named(config, shapes, ARCHITECTURE)


def to_drafter_config(
    config: dict[str, Any], shapes: Shapes, where: Path, *, keep_embeddings: bool
) -> DSparkConfig:
    """The canonical configuration.

    Raises:
        InputError: a key is missing, or asks for what is not supported.
    """
    source = Source(config, shapes, where, NAME)
    backbone = source.shape_of_backbone()
    rope = source.nested("rope_parameters")
    values = {"partial_rotary_factor": config.get("partial_rotary_factor")} | rope
    return source.finish(
        **backbone,
        **source.block(config, keep_embeddings),
        **source.heads(),
        **read_rope(source),
        rope_dims=round(source.number("partial_rotary_factor", values) * backbone["head_dim"]),
        logits_start=0,
    )


def adapt(config: Mapping[str, Any], name: str, tensor: mx.array) -> mx.array:
    """Norm weights to factors, in float32: next to 1, bfloat16 would lose most of them."""
    return tensor.astype(mx.float32) + 1 if name.endswith("norm.weight") else tensor
