"""How each family stores its prediction head, and the arguments of a model of the head's layers.

The facts are those of the families' checkpoints; mlx-lm leaves all of these tensors out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..drafters.mtp.block import argument_names

Arguments = dict[str, Any]

_NORMS = ("model.norm.weight", "model.language_model.norm.weight", "backbone.norm_f.weight")
TARGET_NORMS = (*_NORMS, *(f"language_model.{name}" for name in _NORMS))
"""Names of the target's final norm."""

DROPPED = (".k_scale", ".v_scale", ".input_scale", ".rotary_emb.inv_freq")
"""Ends of the names of tensors that are not needed."""

COPIES = {"embed_tokens.weight": "embed_tokens.weight", "shared_head.head.weight": "lm_head.weight"}
"""Copies of the target's tables inside a head's layer, and their canonical names."""


@dataclass(frozen=True)
class HeadFormat:
    """A family's head on disk.

    Attributes:
        layers: prefix of the head's layers, before their number; of heads that stand behind the
            target's layers, theirs.
        inner: canonical name of each tensor of the head by its name inside its layer.
        outer: the same by its whole name, for tensors that belong to no layer.
        behind: True where the head's layer is numbered after the target's.
        family_prefix: prefix of the family's layers, as its own conversion expects it.
        arguments: changes to a target's arguments that leave the head's layers alone.
        zero_centered: True where norms are stored as w - 1.
        order: see `MTPConfig`.
    """

    layers: str
    arguments: Callable[[Mapping[str, Any]], Arguments]
    inner: Mapping[str, str] = field(default_factory=dict)
    outer: Mapping[str, str] = field(default_factory=dict)
    behind: bool = False
    family_prefix: str = "model.layers."
    zero_centered: bool = False
    order: str = "embedding"


def _one_layer(**others: Any) -> Callable[[Mapping[str, Any]], Arguments]:
    return lambda config: {"num_hidden_layers": 1, **others}


def _pattern(config: Mapping[str, Any]) -> Arguments:
    """Nemotron's head has a pattern of layers of its own: attention, then experts."""
    pattern = config.get("mtp_hybrid_override_pattern") or config.get("mtp_layers_block_type")
    kinds = {"attention": "*", "full_attention": "*", "moe": "E"}
    layers = [kinds.get(kind, kind) for kind in pattern or ()]
    return {"num_hidden_layers": len(layers), "hybrid_override_pattern": layers}


_QWEN = HeadFormat(
    layers="mtp.layers.",
    outer={
        "mtp.fc.weight": "fc.weight",
        "mtp.pre_fc_norm_embedding.weight": "embedding_norm.weight",
        "mtp.pre_fc_norm_hidden.weight": "hidden_norm.weight",
        "mtp.norm.weight": "norm.weight",
    },
    arguments=_one_layer(full_attention_interval=1),
    zero_centered=True,
)
_PAIR = {
    "eh_proj.weight": "fc.weight",
    "enorm.weight": "embedding_norm.weight",
    "hnorm.weight": "hidden_norm.weight",
}
_NEXTN = HeadFormat(
    layers="model.layers.",
    inner=_PAIR | {"shared_head.norm.weight": "norm.weight"},
    behind=True,
    arguments=_one_layer(first_k_dense_replace=0, moe_layer_freq=1),
)
FORMATS: dict[str, HeadFormat] = {
    "qwen3_5": _QWEN,
    "qwen3_5_moe": _QWEN,
    "qwen3_next": HeadFormat(
        layers=_QWEN.layers,
        outer=_QWEN.outer,
        arguments=_one_layer(full_attention_interval=1, mlp_only_layers=[], decoder_sparse_step=1),
        zero_centered=True,
    ),
    "deepseek_v3": _NEXTN,
    "glm4_moe": _NEXTN,
    "glm4_moe_lite": _NEXTN,
    "nemotron_h": HeadFormat(
        layers="mtp.layers.",
        inner=_PAIR | {"final_layernorm.weight": "norm.weight"},
        family_prefix="backbone.layers.",
        arguments=_pattern,
    ),
    "mimo": HeadFormat(
        layers="model.mtp_layers.",
        inner={
            "input_proj.weight": "fc.weight",
            "token_layernorm.weight": "embedding_norm.weight",
            "hidden_layernorm.weight": "hidden_norm.weight",
            "final_layernorm.weight": "norm.weight",
        },
        arguments=_one_layer(),
        order="hidden",
    ),
}
"""Formats of the families of `drafters.mtp.block.FAMILIES`."""

SIDECARS: dict[str, HeadFormat] = {
    "qwen3_5_mtp": replace(
        _QWEN,
        layers="layers.",
        outer={name.removeprefix("mtp."): own for name, own in _QWEN.outer.items()},
    )
}
"""Formats of heads that stand by themselves, as mlx-vlm writes them, by their model_type. They come
without the target's final norm, so that they read its state before it."""


_BY_SPECULATORS = {
    "input_proj.weight": "fc.weight",
    "token_layernorm.weight": "embedding_norm.weight",
    "hidden_layernorm.weight": "hidden_norm.weight",
    "final_layernorm.weight": "norm.weight",
}
SPECULATORS: dict[str, HeadFormat] = {
    family: replace(form, layers="mtp_layers.", outer={}, inner=_BY_SPECULATORS)
    for family, form in {
        "qwen3": HeadFormat(layers="", arguments=_one_layer()),
        **{name: FORMATS[name] for name in ("qwen3_5", "qwen3_5_moe", "qwen3_next")},
    }.items()
}
"""Formats of heads in vLLM's speculators packaging, by family; they lack that norm too."""

LONE = (*SIDECARS.values(), *SPECULATORS.values())
"""Formats of heads that were published by themselves."""


def head_arguments(family: str, config: Mapping[str, Any], form: HeadFormat) -> Arguments:
    """The arguments of a model that has the head's layers alone, from the target's text config."""
    known = argument_names(family)
    changes = form.arguments(config)
    rope = config.get("rope_parameters")
    if isinstance(rope, dict):  # older models of mlx-lm have its keys at the top
        config = {**rope, **config}
    kept = {name: value for name, value in config.items() if name in known}
    kept |= {name: value for name, value in changes.items() if name in known}
    # The tables of the model are never used.
    return kept | {"model_type": family, "vocab_size": 1}
