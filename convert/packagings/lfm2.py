"""LiquidAI's packaging for LFM2 targets (`Lfm2DSparkDraftModel`).

Blocks are anchor-first with nine rows. Rope rotates neighbouring pairs; with split-half rope the
accepted length would be half. `dflash_config` holds the taps and the mask token. The embedding and
the output matrix are not stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...drafters.dspark.config import DSparkConfig
from .names import adapt as adapt
from .names import rename as rename
from .rope import read_rope
from .source import Shapes, Source, is_named
from .windows import read_windows

NAME = "LiquidAI LFM2"
ARCHITECTURE = "Lfm2DSparkDraftModel"


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
    values = dict(config) | source.nested("dflash_config")
    backbone = source.shape_of_backbone()
    return source.finish(
        **backbone,
        **source.block(values, keep_embeddings),
        **source.heads(),
        **read_rope(source),
        **read_windows(source, values, backbone["num_layers"]),
        rope_interleaved=config.get("rope_is_neox_style") is False,
        logits_start=0,
    )
