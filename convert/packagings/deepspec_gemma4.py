"""DeepSpec's native packaging of Gemma4-shaped DSpark and DFlash drafters (`Gemma4DSparkModel`).

It differs from the packaging of Qwen3-shaped drafters: embeddings are multiplied by sqrt(hidden),
both sublayers have norms before and after them, each layer has a stored scalar, attention scores
are not scaled, rope is partial and proportional, values can be the keys, and base logits have a
softcap, which comes before the sequential bias.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ...drafters.dspark.config import DSparkConfig
from .names import adapt as adapt
from .names import rename as rename
from .source import Shapes, Source, is_named

NAME = "DeepSpec Gemma4"
ARCHITECTURE = "Gemma4DSparkModel"
_UNSUPPORTED = ("enable_moe_block", "num_kv_shared_layers", "hidden_size_per_layer_input")


def matches(config: dict[str, Any], shapes: Shapes) -> bool:
    """True for the architecture's name and a drafter's tensors."""
    return is_named(config, shapes, ARCHITECTURE)


def to_drafter_config(
    config: dict[str, Any], shapes: Shapes, where: Path, *, keep_embeddings: bool
) -> DSparkConfig:
    """The canonical configuration.

    Raises:
        InputError: a key is missing, or has a value that DeepSpec Gemma4 drafters do not have.
    """
    source = Source(config, shapes, where, NAME)
    return source.finish(
        **conventions(source),
        **source.block(config, keep_embeddings),
        **source.heads(),
        logits_start=0,
    )


def conventions(source: Source) -> dict[str, Any]:
    """Canonical keys that describe the layers of a DeepSpec Gemma4 drafter of any method.

    Raises:
        InputError: a key is missing, or has a value that these drafters do not have.
    """
    config = source.config
    for key in _UNSUPPORTED:
        if config.get(key):
            source.refuse(key, config[key], "none")
    if (act := source.need("hidden_activation")) != "gelu_pytorch_tanh":
        source.refuse("hidden_activation", act, "'gelu_pytorch_tanh'")
    shared = bool(config.get("attention_k_eq_v"))
    kv_heads = "num_global_key_value_heads" if shared else "num_key_value_heads"
    head_dim = source.need("global_head_dim")
    values = dict(config) | {
        "hidden_act": "silu",
        "head_dim": head_dim,
        "num_key_value_heads": source.need(kv_heads),
    }
    backbone = source.shape_of_backbone(values)
    source.layer_types(backbone["num_layers"])
    return {
        **backbone,
        **_rope(source, head_dim),
        "activation": "gelu_tanh",
        "values": "keys" if shared else "projected",
        "attention_scale": 1.0,
        "sandwich_norms": True,
        "layer_scalars": True,
        "embedding_scale": math.sqrt(backbone["hidden_size"]),
        "softcap": source.number("final_logit_softcapping"),
    }


def _rope(source: Source, head_dim: int) -> dict[str, Any]:
    rope = source.nested("rope_parameters").get("full_attention")
    if not isinstance(rope, dict):
        source.refuse("rope_parameters", rope, "an entry full_attention")
    assert isinstance(rope, dict)
    if (kind := rope.get("rope_type")) != "proportional":
        source.refuse("rope_type", kind, "'proportional'")
    factor = source.number("partial_rotary_factor", rope)
    return {
        "rope_theta": source.number("rope_theta", rope),
        "rope_dims": head_dim,
        "rope_scaling": {"rope_type": "proportional", "partial_rotary_factor": factor},
    }
