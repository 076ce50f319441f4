"""Google's packaging of Gemma 4's assistants (`gemma4_assistant`, `gemma4_unified_assistant`).

The checkpoint does not say how deep its target is, nor how many of the target's last layers read
keys and values of earlier ones. The last two layers before those are a sliding one and one of full
attention; their inputs are the taps. Logits are read from the assistant's own table: those of a few
clusters of tokens where embeddings are ordered (E2B, E4B). Weights of keys and values are not used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...checkpoint.base_config import CanonicalConfig
from ...drafters.gemma4_assistant.config import (
    CENTROIDS,
    FULL,
    SLIDING,
    TOKEN_ORDERING,
    Gemma4AssistantConfig,
)
from ...drafters.mtp.block import argument_names
from ...drafters.mtp.config import BLOCK
from ...errors import InputError
from .names import token_ids
from .source import Shapes, Source

KV_SHARED = "num_kv_shared_target_layers"
"""Key that a checkpoint lacks: how many of its target's last layers read earlier layers' keys."""
NAME = "Google's Gemma 4 assistant"
_KINDS = ("gemma4_assistant", "gemma4_unified_assistant")
_NAMES = {
    "pre_projection.weight": "fc.weight",
    "embed_tokens.weight": "lm_head.weight",
    "lm_head.weight": None,  # a copy of the table
    f"masked_embedding.{CENTROIDS}.weight": f"{CENTROIDS}.weight",
    f"masked_embedding.{TOKEN_ORDERING}": TOKEN_ORDERING,
}
_ACTIVATION = "gelu_pytorch_tanh"
_UNUSED = (".self_attn.k_proj.weight", ".self_attn.v_proj.weight", ".self_attn.k_norm.weight")
# What MLX's conversions have, anchor included; transformers' files do not say it.
_BLOCK = 4


def matches(config: dict[str, Any], shapes: Shapes) -> bool:
    """True for the `model_type`, and the projection that only assistants have."""
    return config.get("model_type") in _KINDS and "pre_projection.weight" in shapes


def to_drafter_config(
    config: dict[str, Any], shapes: Shapes, where: Path, *, keep_embeddings: bool
) -> Gemma4AssistantConfig:
    """The canonical configuration.

    Raises:
        InputError: a key is missing, or has a value that is not supported.
    """
    source = Source(config, shapes, where, NAME)
    text = source.nested("text_config")
    hidden, target = source.whole("hidden_size", text), source.whole("backbone_hidden_size")
    layers = source.whole("num_hidden_layers", text)
    kinds = source.layer_types(layers, text, (FULL, SLIDING))
    if (activation := text.get("hidden_activation") or _ACTIVATION) != _ACTIVATION:
        source.refuse("hidden_activation", activation, repr(_ACTIVATION))
    depth, shared = _depth(source)
    own = depth - shared
    block = config.get("block_size")
    window = source.whole("sliding_window", text)
    heads, kv_heads = source.whole("num_attention_heads", text), text.get("num_key_value_heads")
    return source.finish_as(
        Gemma4AssistantConfig,
        hidden_size=hidden,
        intermediate_size=source.whole("intermediate_size", text),
        num_heads=heads,
        num_kv_heads=heads if kv_heads is None else source.whole("num_key_value_heads", text),
        head_dim=source.whole("head_dim", text),
        rms_norm_eps=source.number("rms_norm_eps", text),
        vocab_size=source.whole("vocab_size", text),
        target_hidden_size=target,
        target_num_layers=depth,
        taps=(own - 3, own - 2, depth - 1),
        rope_theta=10000.0,  # the layers' own are among the arguments
        owns_embedding=False,
        owns_head=True,
        embedding_scale=math.sqrt(target),
        arguments=_arguments(text, kinds),
        steps=(_BLOCK if block is None else source.whole("block_size")) - 1,
        state="normed",
        full_layer=own - 1,
        sliding_layer=own - 2,
        # The mask's distance from the newest key includes both ends.
        window=window + 1,
        **_clusters(source),
    )


def rename(config: CanonicalConfig, names: Sequence[str]) -> dict[str, str | None]:
    """Maps names to canonical ones; None for what is not used."""
    renamed: dict[str, str | None] = {}
    for name in names:
        new: str | None = name
        if name.startswith("layers."):
            unused = name.endswith(_UNUSED)
            new = None if unused else f"{BLOCK}.{name.removeprefix('layers.')}"
        renamed[name] = _NAMES.get(name, new)
    return renamed


def adapt(config: Mapping[str, Any], name: str, tensor: mx.array) -> mx.array:
    """The token ordering as int32; other tensors unchanged."""
    return token_ids(tensor) if name == TOKEN_ORDERING else tensor


def _clusters(source: Source) -> dict[str, int]:
    """The canonical keys of ordered embeddings; {} without them."""
    ordered = source.config.get("use_ordered_embeddings", False)
    if type(ordered) is not bool:
        source.refuse("use_ordered_embeddings", ordered, "true or false")
    if not ordered:
        return {}
    top_k = source.whole("centroid_intermediate_top_k")
    return {"num_centroids": source.whole("num_centroids"), "centroid_top_k": top_k}


def _depth(source: Source) -> tuple[int, int]:
    """The number of the target's layers, and of the last ones that make no keys and values."""
    if source.config.get("num_target_layers") is None:
        hint = (
            "Say how many layers the target has: convert drafter --target-layers N, and "
            "--kv-shared-layers N where its config.json has num_kv_shared_layers."
        )
        expected = "the number of the target's layers, of which two are read"
        raise InputError(source.path, "no num_target_layers", expected, hint)
    depth, shared = source.whole("num_target_layers"), source.config.get(KV_SHARED)
    shared = 0 if shared is None else shared
    if type(shared) is not int or not 0 <= shared <= depth - 2:
        found = f"{KV_SHARED} {shared!r} with num_target_layers {depth}"
        expected = "at least 2 layers with keys and values of their own"
        hint = "What the file lacks is said by --target-layers and --kv-shared-layers."
        raise InputError(source.path, found, expected, hint)
    return depth, shared


def _arguments(text: dict[str, Any], kinds: list[str]) -> dict[str, Any]:
    """The arguments of a model that has the assistant's layers alone."""
    known = argument_names("gemma4_text")
    kept = {name: value for name, value in text.items() if name in known and value is not None}
    return kept | {
        "model_type": "gemma4_text",
        "layer_types": kinds,
        "num_kv_shared_layers": len(kinds),
        "hidden_size_per_layer_input": 0,
    }
