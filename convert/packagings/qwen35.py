"""Community drafters for Qwen3.5 targets (`Qwen35DSparkModel`), in DeepSpec's layout.

Each head's query rows are followed by the rows of its output gate, rope rotates a part of each
head, and norm weights are stored minus 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...drafters.dspark.config import DSparkConfig
from .names import rename as rename
from .rope import read_rope
from .source import Shapes, Source, is_named

NAME = "Qwen3.5 community"
ARCHITECTURE = "Qwen35DSparkModel"


def matches(config: dict[str, Any], shapes: Shapes) -> bool:
    """True for the architecture's name and a drafter's tensors."""
    return is_named(config, shapes, ARCHITECTURE)


def to_drafter_config(
    config: dict[str, Any], shapes: Shapes, where: Path, *, keep_embeddings: bool
) -> DSparkConfig:
    """The canonical configuration.

    Raises:
        InputError: a key is missing, or has a value that is not supported.
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
    """Norm weights plus 1, in float32, since bfloat16 is coarse near 1; other tensors unchanged."""
    return tensor.astype(mx.float32) + 1 if name.endswith("norm.weight") else tensor
