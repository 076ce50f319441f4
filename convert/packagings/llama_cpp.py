"""llama.cpp's GGUF packaging ("dflash") of DFlash drafters, and of DSpark drafters.

Markov tensors mark a DSpark drafter. Tap ids are those of the layer that a hidden state enters, one
more than the layer whose output it is; early files, which call the list `dflash.target_layer_ids`,
have the ids of the layer whose output it is. Ids of a reduced vocabulary are absolute. Sliding
layers follow the conventions of the safetensors files that these files are converted from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...checkpoint.base_config import CanonicalConfig
from ...checkpoint.layout import DRAFT_IDS
from ...drafters.dspark.config import DSparkConfig
from ...errors import InputError
from ..gguf.header import shortest
from .source import COPIES, FULL, SLIDING, Shapes, Source
from .windows import read_windows

NAME = "llama.cpp dflash GGUF"
ARCHITECTURES = ("dflash", "dflash-draft")
_TENSORS = {
    "token_embd": "embed_tokens",
    "output": "lm_head",
    "output_norm": "norm",
    "enc.output_norm": "hidden_norm",
    "markov_w1": "markov_head.markov_w1",
    "markov_w2": "markov_head.markov_w2",
    "conf_proj": "confidence_head.proj",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
}
_MASK = "tokenizer.ggml.mask_token_id"


def matches(config: dict[str, Any], shapes: Shapes) -> bool:
    """True for the architecture's name in the GGUF metadata."""
    return config.get("general.architecture") in ARCHITECTURES


def canonical(name: str) -> str:
    """The canonical name of a tensor; an unknown name is unchanged, so that checks report it."""
    layer = re.match(r"blk\.(\d+)\.", name)
    stem, _, part = name[layer.end() if layer else 0 :].rpartition(".")
    if stem not in _TENSORS:
        return name
    return (f"layers.{layer[1]}." if layer else "") + f"{_TENSORS[stem]}.{part}"


def to_drafter_config(
    config: dict[str, Any], shapes: Shapes, where: Path, *, keep_embeddings: bool
) -> DSparkConfig:
    """The canonical configuration.

    Raises:
        InputError: a key is missing, or has a value that is not supported.
    """
    prefix = f"{config['general.architecture']}."
    # float32 metadata as the decimal numbers of the config that the file was converted from.
    values = {
        key.removeprefix(prefix): shortest(value) if isinstance(value, float) else value
        for key, value in config.items()
    }
    source = Source(values, {canonical(name): shape for name, shape in shapes.items()}, where, NAME)
    if any(name.endswith("attn_sinks.weight") for name in shapes):
        source.refuse("attn_sinks", "one per layer", "attention without sinks")
    if values.get("logit_scale") not in (None, 1.0):
        source.refuse("logit_scale", values["logit_scale"], "1")
    sizes = {ours: source.whole(theirs) for ours, theirs in _SIZES.items()}
    if (width := values.get("attention.value_length", sizes["head_dim"])) != sizes["head_dim"]:
        source.refuse("attention.value_length", width, f"the key's {sizes['head_dim']}")
    sizes["vocab_size"] = _vocab_size(source)
    eps = {"rms_norm_eps": source.number("attention.layer_norm_rms_epsilon")}
    heads = source.heads({"markov_rank": source.rank, "markov_head_type": "vanilla"})
    # Without the key, the anchor's row gives logits in a DSpark file and none in a DFlash file.
    from_anchor = values.get("sample_from_anchor", heads["head"] != "none")
    return source.finish(
        **source.shape_of_backbone(sizes | eps),
        **_taps(source),
        **heads,
        **_vocabulary(source, sizes["vocab_size"], keep_embeddings),
        **_rope(source, sizes["head_dim"]),
        **_attention(source, sizes["num_hidden_layers"], by_row=heads["head"] != "none"),
        target_num_layers=0,
        block_size=source.whole("block_size"),
        mask_token_id=source.need(_MASK if _MASK in values else "dflash.mask_token_id"),
        logits_start=0 if from_anchor else 1,
        embedding_scale=source.number("embedding_scale", default=1.0),
        softcap=source.number("final_logit_softcapping", default=0.0),
    )


def rename(config: CanonicalConfig, names: Sequence[str]) -> dict[str, str | None]:
    """Maps names to canonical names; copies of the target's tables to None unless kept."""
    owned = {COPIES[0]: config.owns_embedding, COPIES[1]: config.owns_head}
    new = {name: canonical(name) for name in names}
    return {old: name if owned.get(name, True) else None for old, name in new.items()}


def adapt(config: Mapping[str, Any], name: str, tensor: mx.array) -> mx.array:
    """Draft vocabulary ids as int32; other tensors unchanged."""
    return tensor.astype(mx.int32) if name == DRAFT_IDS else tensor


def _vocab_size(source: Source) -> int:
    """The vocabulary's size, from tensors with a row per token, else from the metadata."""
    for name in ("markov_head.markov_w1.weight", COPIES[0]):
        if name in source.shapes:
            return source.shapes[name][0]
    if "vocab_size" in source.config:
        return source.whole("vocab_size")
    tokens = source.need("tokenizer.ggml.tokens")
    return len(tokens) if isinstance(tokens, list) else 0


def _vocabulary(source: Source, vocab_size: int, keep: bool) -> dict[str, Any]:
    if DRAFT_IDS not in source.shapes:
        return source.copies(keep)
    size = source.shapes[DRAFT_IDS][0]
    if size >= vocab_size or COPIES[1] not in source.shapes:
        found = f"{DRAFT_IDS} of {size} tokens"
        raise InputError(source.where, found, f"fewer than {vocab_size}, and output.weight")
    return source.copies(keep) | {"owns_head": True, "draft_vocab_size": size}


def _taps(source: Source) -> dict[str, Any]:
    early = "dflash.target_layer_ids" in source.config
    ids = source.need("dflash.target_layer_ids" if early else "target_layers")
    fc, width = source.shapes.get("fc.weight", ()), None
    if isinstance(ids, list) and len(fc) == 2 and all(name in source.shapes for name in COPIES):
        # With its own tables, a drafter can differ in width from its target. No key gives the
        # target's width; loading compares this one with the target.
        width = fc[1] // max(len(ids), 1)
    return source.taps(ids, shift=0 if early else -1, width=width)


def _rope(source: Source, head_dim: int) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_theta": source.number("rope.freq_base")}
    if (width := source.config.get("rope.dimension_count", head_dim)) != head_dim:
        found["rope_dims"] = width
    kind = source.config.get("rope.scaling.type", "none")
    if kind not in ("none", "yarn"):
        source.refuse("rope.scaling.type", kind, "'none' or 'yarn'")
    if kind == "yarn":
        keys = {
            "factor": "factor",
            "original_max_position_embeddings": "original_context_length",
            "beta_fast": "yarn_beta_fast",
            "beta_slow": "yarn_beta_slow",
        }
        needed = {"factor", "original_max_position_embeddings"}
        scaling = {
            ours: source.number(f"rope.scaling.{theirs}")
            for ours, theirs in keys.items()
            if ours in needed or f"rope.scaling.{theirs}" in source.config
        }
        found["rope_scaling"] = {"rope_type": "yarn", **scaling}
    return found


def _attention(source: Source, layers: int, *, by_row: bool) -> dict[str, Any]:
    key = "attention.sliding_window"
    window = source.whole(key) if source.config.get(key) else 0
    pattern = source.config.get(f"{key}_pattern", [window > 0] * layers)
    flags = isinstance(pattern, list) and all(isinstance(flag, bool) for flag in pattern)
    if not flags or len(pattern) != layers:
        source.refuse(f"{key}_pattern", pattern, f"{layers} values, each true or false")
    kinds = [SLIDING if flag and window else FULL for flag in pattern]
    values = {"layer_types": kinds, "sliding_window": window}
    causal = source.config.get("attention.causal")
    return read_windows(source, values, layers, causal=causal, by_row=by_row, less=1)
