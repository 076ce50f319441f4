"""Google's packaging of Gemma 4's assistants (`gemma4_assistant`, `gemma4_unified_assistant`).

The checkpoint does not say how deep its target is. The last two layers of Gemma 4's targets without
shared keys and values are a sliding one and one of full attention; their inputs are the taps. The
table that logits are read from is the assistant's own. Weights of keys and values are leftovers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...checkpoint.base_config import CanonicalConfig
from ...drafters.gemma4_assistant.config import FULL, SLIDING, Gemma4AssistantConfig
from ...drafters.mtp.block import argument_names
from ...drafters.mtp.config import BLOCK
from ...errors import InputError
from .names import adapt as adapt
from .source import Shapes, Source

NAME = "Google's Gemma 4 assistant"
_KINDS = ("gemma4_assistant", "gemma4_unified_assistant")
_NAMES = {
    "pre_projection.weight": "fc.weight",
    "embed_tokens.weight": "lm_head.weight",
    "lm_head.weight": None,  # a copy of the table
}
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
    if config.get("use_ordered_embeddings"):
        source.refuse("use_ordered_embeddings", True, "logits of the whole vocabulary")
    text = source.nested("text_config")
    hidden, target = source.whole("hidden_size", text), source.whole("backbone_hidden_size")
    layers = source.whole("num_hidden_layers", text)
    kinds = source.layer_types(layers, text, (FULL, SLIDING))
    depth = _depth(source)
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
        taps=(depth - 3, depth - 2, depth - 1),
        rope_theta=10000.0,  # the layers' own are among the arguments
        owns_embedding=False,
        owns_head=True,
        embedding_scale=math.sqrt(target),
        arguments=_arguments(text, kinds),
        steps=(_BLOCK if block is None else source.whole("block_size")) - 1,
        state="normed",
        full_layer=depth - 1,
        sliding_layer=depth - 2,
        # The mask's distance from the newest key includes both ends.
        window=window + 1,
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


def _depth(source: Source) -> int:
    if source.config.get("num_target_layers") is None:
        hint = "Say how many layers the target has: convert drafter --target-layers N."
        expected = "the number of the target's layers, of which two are read"
        raise InputError(source.path, "no num_target_layers", expected, hint)
    depth = source.whole("num_target_layers")
    if depth < 2:
        source.refuse("num_target_layers", depth, "2 or more")
    return depth


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
