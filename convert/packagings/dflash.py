"""z-lab's DFlash packaging (`DFlashDraftModel`).

There is no sequential head, and the anchor's row gives no logits. Newer files nest `block_size` in
`dflash_config`. A window's width includes the attending row itself. A softcap marks a drafter for
a Gemma target, whose embedding scale the drafter uses. Files with this architecture's name and
DSpark's tensors are DeepSpec drafters under another name.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ...drafters.dspark.config import DSparkConfig
from . import dspine
from .dflash2 import selects
from .names import adapt as adapt
from .names import rename as rename
from .rope import read_rope
from .source import Shapes, Source, is_named
from .specforge import sliding

NAME = "z-lab DFlash"
ARCHITECTURE = "DFlashDraftModel"


def matches(config: dict[str, Any], shapes: Shapes) -> bool:
    """True for the architecture's name and tensors, without keys of packagings that use it too."""
    borrowed = "speculators_model_type" in config or config.get("projector_type")
    nested = config.get("dflash_config")
    borrowed = borrowed or (isinstance(nested, dict) and nested.get("projector_type") == "dspark")
    borrowed = borrowed or selects(shapes) or dspine.matches(config, shapes)
    return is_named(config, shapes, ARCHITECTURE) and not borrowed


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
    heads = source.heads()
    softcap = source.number("final_logit_softcapping", values, default=0.0)
    scale = math.sqrt(backbone["hidden_size"]) if softcap else 1.0
    return source.finish(
        **backbone,
        **source.taps(source.need("target_layer_ids", values)),
        **heads,
        **source.copies(keep_embeddings),
        **read_rope(source),
        **sliding(source, values, backbone["num_layers"], less=1),
        target_num_layers=source.whole("num_target_layers", values),
        block_size=source.whole("block_size", values),
        logits_start=1 if heads["head"] == "none" else 0,
        mask_token_id=source.need("mask_token_id", values),
        softcap=softcap,
        embedding_scale=scale,
    )
