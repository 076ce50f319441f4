"""llama.cpp's GGUF packaging ("gemma4-assistant") of Gemma 4's assistants.

The file is read as Google's packaging. Norms are stored as they are. The rotated part of a head of
full attention, a quarter in all of Gemma 4's models, is not in the metadata. Nor is the number of
clusters that E2B's and E4B's assistants take; their files may lack the clusters, and where they
have some, these are left out: logits are those of the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...checkpoint.base_config import CanonicalConfig
from ...drafters.gemma4_assistant.config import FULL, SLIDING, Gemma4AssistantConfig
from . import gemma4_assistant
from .gemma4_assistant import KV_SHARED
from .llama_cpp import settings, translated
from .names import adapt as adapt
from .source import Shapes, Source

NAME = "llama.cpp gemma4-assistant GGUF"
ARCHITECTURE = "gemma4-assistant"
_TENSORS = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "nextn.pre_projection": "pre_projection",
    "nextn.post_projection": "post_projection",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_WHOLE = {"layer_output_scale.weight": "layer_scalar"}
_TABLE = "token_embd.weight"
_UNUSED = ("rope_freqs.weight", "masked_embd_centroids.weight", "masked_embd_ordering")
_ROTATED = 0.25
_SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "global_head_dim": "attention.key_length",
    "head_dim": "attention.key_length_swa",
    "sliding_window": "attention.sliding_window",
}


def matches(config: dict[str, Any], shapes: Shapes) -> bool:
    """True for the architecture's name in the GGUF metadata."""
    return config.get("general.architecture") == ARCHITECTURE


def to_drafter_config(
    config: dict[str, Any], shapes: Shapes, where: Path, *, keep_embeddings: bool
) -> Gemma4AssistantConfig:
    """The canonical configuration.

    Raises:
        InputError: a key is missing, or has a value that is not supported.
    """
    values = settings(config, f"{ARCHITECTURE}.")
    source = Source(values, shapes, where, NAME)
    text: dict[str, Any] = {ours: source.whole(theirs) for ours, theirs in _SIZES.items()}
    table = shapes.get(_TABLE, ())
    text["vocab_size"] = table[0] if table else source.whole("vocab_size")
    text["rms_norm_eps"] = source.number("attention.layer_norm_rms_epsilon")
    text["layer_types"] = _layer_types(source, text["num_hidden_layers"])
    rotated = source.config.get("rope.dimension_count_swa", text["head_dim"])
    if rotated != text["head_dim"]:
        source.refuse("rope.dimension_count_swa", rotated, f"all of {text['head_dim']}")
    full = {"rope_type": "proportional", "partial_rotary_factor": _ROTATED}
    text["rope_parameters"] = {
        FULL: full | {"rope_theta": source.number("rope.freq_base")},
        SLIDING: {"rope_type": "default", "rope_theta": source.number("rope.freq_base_swa")},
    }
    published = {
        "backbone_hidden_size": source.whole("embedding_length_out"),
        "text_config": text,
        **{key: values[key] for key in ("num_target_layers", KV_SHARED) if key in values},
    }
    return gemma4_assistant.to_drafter_config(
        published, shapes, where, keep_embeddings=keep_embeddings
    )


def rename(config: CanonicalConfig, names: Sequence[str]) -> dict[str, str | None]:
    """Maps names to canonical ones; None for what is not used."""
    kept = {n: translated(n, _TENSORS, _WHOLE) for n in names if n not in _UNUSED}
    canonical = gemma4_assistant.rename(config, list(kept.values()))
    return {name: canonical[kept[name]] if name in kept else None for name in names}


def _layer_types(source: Source, layers: int) -> list[str]:
    key = "attention.sliding_window_pattern"
    pattern = source.need(key)
    flags = isinstance(pattern, list) and all(isinstance(flag, bool) for flag in pattern)
    if not flags or len(pattern) != layers:
        source.refuse(key, pattern, f"{layers} values, each true or false")
    return [SLIDING if flag else FULL for flag in pattern]
