"""vLLM's "speculators" packaging: `speculator.dspark`, `.dflash` and `.dflash2`.

`transformer_layer_config` holds the backbone's keys. Tap ids are those of the layer that a hidden
state enters, one more than the layer whose output it is. A reduced vocabulary comes with its own
output matrix and with `d2t`, which holds token ids as offsets. Sliding layers are causal inside the
block unless `sliding_window_non_causal` is set, which is the default of DFlash 2 alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...drafters.dflash2.config import DFlash2Config
from ...drafters.dspark.config import BlockConfig, DSparkConfig
from .dflash2 import own_keys
from .reduced import adapt as adapt
from .reduced import reduced
from .rope import read_rope
from .source import Shapes, Source, proposed
from .source import rename as rename
from .windows import read_windows

NAME = "vLLM speculators"
_KINDS = ("dspark", "dflash", "dflash2")


def matches(config: dict[str, Any], shapes: Shapes) -> bool:
    """True for this `speculators_model_type`; another packaging has the same architectures."""
    return config.get("speculators_model_type") in _KINDS


def to_drafter_config(
    config: dict[str, Any], shapes: Shapes, where: Path, *, keep_embeddings: bool
) -> BlockConfig:
    """The canonical configuration.

    Raises:
        InputError: a key is missing, or has a value that is not supported.
    """
    source = Source(config, shapes, where, NAME)
    values = source.nested("transformer_layer_config")
    if config.get("logit_scale") not in (None, 1, 1.0):
        source.refuse("logit_scale", config["logit_scale"], "1")
    backbone = source.shape_of_backbone(values)
    second = config["speculators_model_type"] == "dflash2"
    causal = False if config.get("sliding_window_non_causal", second) else None
    if second and config.get("is_causal") is not None:
        causal = bool(config["is_causal"])
    interleaved = config.get("is_neox_style", values.get("is_neox_style")) is False
    vocabulary = reduced(source, backbone["vocab_size"], keep_embeddings)
    if second:
        own = own_keys(source, config, backbone["hidden_size"])
    else:
        own = {"logits_start": _logits_start(source), **source.heads()}
    return source.finish_as(
        DFlash2Config if second else DSparkConfig,
        **backbone,
        **source.taps(source.need("aux_hidden_state_layer_ids"), shift=-1),
        **own,
        **vocabulary,
        **read_rope(source, values),
        **read_windows(source, values, backbone["num_layers"], causal=causal),
        rope_interleaved=interleaved,
        target_num_layers=0,
        block_size=source.need("block_size"),
        mask_token_id=source.need("mask_token_id"),
    )


def _logits_start(source: Source) -> int:
    """`logits_start`: 0 when the anchor's row gives logits, else 1.

    Early files lack the key `sample_from_anchor`, and their anchor's row gives none, unless the
    file proposes as many tokens as its block has rows.
    """
    stated = source.config.get("sample_from_anchor")
    if isinstance(stated, bool):
        return 0 if stated else 1
    return 0 if proposed(source) == source.need("block_size") else 1
