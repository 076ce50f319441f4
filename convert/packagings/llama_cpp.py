"""llama.cpp's GGUF packaging ("dflash") of DFlash, DFlash 2 and DSpark drafters.

Markov tensors mark a DSpark drafter, and a selector's a DFlash 2 drafter. Tap ids are those of the
layer that a hidden state enters, one more than the layer whose output it is; early files, which
call the list `dflash.target_layer_ids`, have the ids of the layer whose output it is. Ids of a
reduced vocabulary are absolute. Sliding layers follow the conventions of the safetensors files that
these files are converted from. Without `sample_from_anchor`, the anchor's row gives logits in a
DSpark file alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...checkpoint.base_config import DRAFT_IDS, CanonicalConfig
from ...checkpoint.layer_shapes import SINKS
from ...drafters.dflash2.config import BASE, DFlash2Config
from ...drafters.dflash2.selector import PREDECESSOR, PROJECTION, SUCCESSOR
from ...drafters.dspark.config import BlockConfig, DSparkConfig
from ...errors import InputError
from ..gguf.header import shortest
from .dflash2 import own_keys, selects
from .names import COPIES, token_ids
from .source import FULL, SLIDING, Shapes, Source
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
    "attn_conv_proj": "attention_conv.kernel_projection",
    "ffn_conv_proj": "mlp_conv.kernel_projection",
    "selector_predecessor": PREDECESSOR,
    "selector_successor": SUCCESSOR,
    "selector_hidden": PROJECTION,
    "log_snr_fc1": "noise.fc1",
    "log_snr_fc2": "noise.fc2",
}
# Tensors whose last part changes too.
_WHOLE = {
    "attn_sinks.weight": f"self_attn.{SINKS}",
    "attn_conv_base": f"attention_conv.{BASE}",
    "ffn_conv_base": f"mlp_conv.{BASE}",
}
_SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
}
_MASKS = ("tokenizer.ggml.mask_token_id", "dflash.mask_token_id", "mask_token_id")
_CONFIDENCE = "confidence_head.proj.weight"


def matches(config: dict[str, Any], shapes: Shapes) -> bool:
    """True for the architecture's name in the GGUF metadata."""
    return config.get("general.architecture") in ARCHITECTURES


def canonical(name: str) -> str:
    """The canonical name of a tensor; an unknown name is unchanged, so that checks report it."""
    return translated(name, _TENSORS, _WHOLE)


def translated(name: str, tensors: Mapping[str, str], whole: Mapping[str, str]) -> str:
    """A tensor's name in another packaging; an unknown name is unchanged.

    Args:
        name: its name in the file, with `blk.N.` before those of a layer.
        tensors: the other packaging's names by the file's, both without their last part.
        whole: those whose last part differs too.
    """
    layer = re.match(r"blk\.(\d+)\.", name)
    inner = name[layer.end() if layer else 0 :]
    stem, _, part = inner.rpartition(".")
    if inner not in whole and stem not in tensors:
        return name
    new = whole.get(inner) or f"{tensors[stem]}.{part}"
    return f"layers.{layer[1]}.{new}" if layer else new


def to_drafter_config(
    config: dict[str, Any], shapes: Shapes, where: Path, *, keep_embeddings: bool
) -> BlockConfig:
    """The canonical configuration.

    Raises:
        InputError: a key is missing, or has a value that is not supported.
    """
    values = settings(config, f"{config['general.architecture']}.")
    source = Source(values, by_canonical(shapes, canonical), where, NAME)
    early = "dflash.target_layer_ids" in values
    ids = source.need("dflash.target_layer_ids" if early else "target_layers")
    return configured(source, keep_embeddings, read_taps(source, ids, shift=0 if early else -1))


def settings(config: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """A file's metadata by keys without `prefix`, which some files repeat.

    Its float32 numbers are the decimal ones of the config that the file was converted from.
    """
    return {
        key.removeprefix(prefix): shortest(value) if isinstance(value, float) else value
        for key, value in config.items()
    }


def by_canonical(shapes: Shapes, canonical: Callable[[str], str]) -> Shapes:
    """Shapes by the tensors' canonical names; a confidence head may be stored as a vector."""
    named = {canonical(name): shape for name, shape in shapes.items()}
    if len(vector := named.get(_CONFIDENCE, ())) == 1:
        named[_CONFIDENCE] = (1, *vector)
    return named


def configured(source: Source, keep_embeddings: bool, taps: dict[str, Any]) -> BlockConfig:
    """The canonical configuration of a file with llama.cpp's keys.

    Args:
        source: the keys without prefix, and the shapes by canonical names.
        keep_embeddings: see `Packaging.to_drafter_config`.
        taps: the canonical keys of the taps.

    Raises:
        InputError: a key is missing, or has a value that is not supported.
    """
    values, shapes = source.config, source.shapes
    second = selects(shapes)
    if not second and values.get("logit_scale") not in (None, 1.0):
        source.refuse("logit_scale", values["logit_scale"], "1")
    sizes = {ours: source.whole(theirs) for ours, theirs in _SIZES.items()}
    if (width := values.get("attention.value_length", sizes["head_dim"])) != sizes["head_dim"]:
        source.refuse("attention.value_length", width, f"the key's {sizes['head_dim']}")
    sizes["vocab_size"] = _vocab_size(source)
    eps = {"rms_norm_eps": source.number("attention.layer_norm_rms_epsilon")}
    backbone = source.shape_of_backbone(sizes | eps)
    own = _dflash2(source, sizes["hidden_size"]) if second else _dspark(source)
    by_row = second or own["head"] != "none"
    return source.finish_as(
        DFlash2Config if second else DSparkConfig,
        **backbone,
        **taps,
        **own,
        **_vocabulary(source, sizes["vocab_size"], keep_embeddings),
        **_rope(source, sizes["head_dim"]),
        **_attention(source, sizes["num_hidden_layers"], by_row, False if second else None),
        target_num_layers=0,
        block_size=source.whole("block_size"),
        mask_token_id=source.need(next((key for key in _MASKS if key in values), _MASKS[0])),
        embedding_scale=source.number("embedding_scale", default=1.0),
        softcap=source.number("final_logit_softcapping", default=0.0),
    )


def _dspark(source: Source) -> dict[str, Any]:
    heads = source.heads({"markov_rank": source.rank, "markov_head_type": "vanilla"})
    from_anchor = source.config.get("sample_from_anchor", heads["head"] != "none")
    noise = source.shapes.get("noise.fc1.weight")
    if source.config.get("log_snr_conditioning") and not noise:
        source.refuse("log_snr_conditioning", True, "tensors log_snr_fc1 and log_snr_fc2")
    width = noise[0] if noise else 0
    return {**heads, "logits_start": 0 if from_anchor else 1, "noise_width": width}


def _dflash2(source: Source, hidden: int) -> dict[str, Any]:
    multiplier = {"output_multiplier": source.config.get("logit_scale")}
    own = own_keys(source, dict(source.config) | multiplier, hidden)
    # The file has the whole scale of the embedding.
    return {key: own[key] for key in own if key not in ("embedding_scale", "softcap")}


def rename(config: CanonicalConfig, names: Sequence[str]) -> dict[str, str | None]:
    """Maps names to canonical names; copies of the target's tables to None unless kept."""
    return renamed(config, names, canonical)


def renamed(
    config: CanonicalConfig, names: Sequence[str], canonical: Callable[[str], str]
) -> dict[str, str | None]:
    """As `rename`, for a packaging with another function `canonical`."""
    owned = {COPIES[0]: config.owns_embedding, COPIES[1]: config.owns_head}
    new = {name: canonical(name) for name in names}
    return {old: name if owned.get(name, True) else None for old, name in new.items()}


def adapt(config: Mapping[str, Any], name: str, tensor: mx.array) -> mx.array:
    """Draft vocabulary ids as int32, a confidence head as a matrix; other tensors unchanged."""
    if name == _CONFIDENCE:
        return tensor.reshape(1, -1)
    return token_ids(tensor) if name == DRAFT_IDS else tensor


def _vocab_size(source: Source) -> int:
    """The vocabulary's size, from tensors with a row per token, else from the metadata."""
    for name in ("markov_head.markov_w1.weight", f"{PREDECESSOR}.weight", COPIES[0]):
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


def read_taps(source: Source, ids: object, shift: int) -> dict[str, Any]:
    """The canonical keys of the taps, see `Source.taps`."""
    fc, width = source.shapes.get("fc.weight", ()), None
    if isinstance(ids, list) and len(fc) == 2 and all(name in source.shapes for name in COPIES):
        # With its own tables, a drafter can differ in width from its target. No key gives the
        # target's width; loading compares this one with the target.
        width = fc[1] // max(len(ids), 1)
    return source.taps(ids, shift=shift, width=width)


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


def _attention(source: Source, layers: int, by_row: bool, causal: bool | None) -> dict[str, Any]:
    """Windows and causality; `causal` is that of files that do not say."""
    key = "attention.sliding_window"
    window = source.whole(key) if source.config.get(key) else 0
    pattern = source.config.get(f"{key}_pattern", [window > 0] * layers)
    flags = isinstance(pattern, list) and all(isinstance(flag, bool) for flag in pattern)
    if not flags or len(pattern) != layers:
        source.refuse(f"{key}_pattern", pattern, f"{layers} values, each true or false")
    kinds = [SLIDING if flag and window else FULL for flag in pattern]
    values = {"layer_types": kinds, "sliding_window": window}
    causal = source.config.get("attention.causal", causal)
    return read_windows(source, values, layers, causal=causal, by_row=by_row, less=1)
