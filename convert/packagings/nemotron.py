"""NVIDIA's packaging of DSpark drafters for Nemotron targets (`dspark_bonus_anchor`).

DeepSpec's layout with keys of its own beside SpecForge's nested ones. All layers are sliding, and a
window is measured from each row; rows are causal inside the block, and each head has an attention
sink. The anchor's row gives no logits. The stored embedding is the drafter's own, and the output
matrix is the target's. Published weights are NVFP4 or bfloat16.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...drafters.dspark.config import DSparkConfig
from .names import COPIES
from .names import adapt as adapt
from .names import rename as rename
from .rope import read_rope
from .source import Shapes, Source
from .specforge import sliding

NAME = "NVIDIA Nemotron"
_ANCHOR, _TAPS = "dspark_bonus_anchor", "eagle_aux_hidden_state_layer_ids"


def matches(config: dict[str, Any], shapes: Shapes) -> bool:
    """True for the key that only these drafters have, and a drafter's tensors."""
    return _ANCHOR in config and "fc.weight" in shapes


def to_drafter_config(
    config: dict[str, Any], shapes: Shapes, where: Path, *, keep_embeddings: bool
) -> DSparkConfig:
    """The canonical configuration.

    Raises:
        InputError: a key is missing, has a value that is not supported, or contradicts another.
    """
    source = Source(config, shapes, where, NAME)
    values = dict(config) | source.nested("dflash_config")
    values.setdefault("causal", config.get("dflash_query_causal"))
    bonus = source.need(_ANCHOR)
    if bonus is values.get("sample_from_anchor"):
        source.refuse("sample_from_anchor", bonus, f"{not bonus}, the contrary of {_ANCHOR}")
    taps = source.taps(source.need("target_layer_ids", values))
    entered = values.get(_TAPS)
    if entered is not None and entered != [i + 1 for i in taps["taps"]]:
        source.refuse(_TAPS, entered, "those of target_layer_ids, plus one")
    backbone = source.shape_of_backbone(values)
    depth = values.get("num_target_layers")
    return source.finish(
        **backbone,
        **taps,
        **source.heads(values),
        **read_rope(source),
        **sliding(source, values, backbone["num_layers"], by_row=True, less=1),
        owns_embedding=COPIES[0] in shapes,
        owns_head=keep_embeddings and COPIES[1] in shapes,
        target_num_layers=0 if depth is None else source.whole("num_target_layers"),
        block_size=source.whole("block_size", values),
        logits_start=1 if bonus else 0,
        mask_token_id=source.need("mask_token_id", values),
    )
