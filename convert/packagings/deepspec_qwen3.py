"""DeepSpec's native packaging of Qwen3-shaped DSpark and DFlash drafters (`Qwen3DSparkModel`).

Its conventions are the canonical ones: taps are outputs of layers (-1 is the embedding), blocks are
anchor-first, attention is bidirectional, and rope is split-half over the whole head. The stored
embedding and output matrix are frozen copies of the target's; they are left out, and the target's
are shared. Community files in this layout have unused keys of their targets' configs, which are
ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...drafters.dspark.config import DSparkConfig
from ...errors import InputError
from .names import adapt as adapt
from .names import rename as rename
from .rope import read_rope
from .source import Shapes, Source, is_named

NAME = "DeepSpec Qwen3"
ARCHITECTURE = "Qwen3DSparkModel"


def matches(config: dict[str, Any], shapes: Shapes) -> bool:
    """True for the architecture's name, without keys of other packagings that use the same name."""
    borrowed = "projector_type" in config or "dspark_bonus_anchor" in config
    quantized = any(name.endswith(("weight_scale", "weight_packed")) for name in shapes)
    return is_named(config, shapes, ARCHITECTURE) and not borrowed and not quantized


def to_drafter_config(
    config: dict[str, Any], shapes: Shapes, where: Path, *, keep_embeddings: bool
) -> DSparkConfig:
    """The canonical configuration.

    Raises:
        InputError: a key is missing, or has a value that DeepSpec Qwen3 drafters do not have.
    """
    source = Source(config, shapes, where, NAME)
    return source.finish(
        **conventions(source),
        **source.block(config, keep_embeddings),
        **source.heads(),
        logits_start=0,
    )


def conventions(source: Source) -> dict[str, Any]:
    """Canonical keys that describe the layers of a DeepSpec Qwen3 drafter of any method.

    Raises:
        InputError: a key is missing, or has a value that these drafters do not have.
    """
    backbone = source.shape_of_backbone()
    source.layer_types(backbone["num_layers"])
    if source.config.get("use_sliding_window"):
        source.refuse("use_sliding_window", True, "full attention in every layer")
    rope = read_rope(source)
    if "rope_scaling" in rope:
        raise InputError(source.path, "rope type 'yarn'", "'default'")
    return {**backbone, **rope}
