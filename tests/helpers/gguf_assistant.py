"""A tiny Gemma 4 assistant as llama.cpp's GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from dspark_mlx.system.files import read_json
from helpers.gguf_drafters import kind_of
from helpers.gguf_writer import write_gguf

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "pre_projection": "nextn.pre_projection",
    "post_projection": "nextn.post_projection",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def write_assistant_gguf(folder: Path, file: Path, kind: str = "F32", **changes: Any) -> Path:
    """Write `file` from an assistant's folder, as llama.cpp's converter does.

    Args:
        folder: in Google's packaging. file: the GGUF file to write. kind: of its matrices.
        changes: metadata without its prefix, with dots as __; None leaves it out.
    """
    config, stored = read_json(folder / "config.json"), load_file(folder / "model.safetensors")
    tensors: dict[str, Any] = {}
    for name, array in stored.items():
        if name.startswith("masked_embedding."):
            new = name.removeprefix("masked_embedding.").replace("token_ordering", "ordering")
            tensors[f"masked_embd_{new}"] = (array.astype(np.float32), "F32")
        elif not name.endswith("k_proj.weight"):
            tensors[_name(name)] = (array, kind_of(array, kind))
    text = config["text_config"]
    rotated = text["global_head_dim"] // 8  # a quarter of the pairs
    unrotated = text["global_head_dim"] // 2 - rotated
    tensors["rope_freqs.weight"] = (np.array([1.0] * rotated + [1e30] * unrotated), "F32")
    rope = text["rope_parameters"]
    values = {
        "block_count": text["num_hidden_layers"],
        "embedding_length": text["hidden_size"],
        "embedding_length_out": config["backbone_hidden_size"],
        "feed_forward_length": text["intermediate_size"],
        "nextn_predict_layers": text["num_hidden_layers"],
        "attention.head_count": text["num_attention_heads"],
        "attention.key_length": text["global_head_dim"],
        "attention.value_length": text["global_head_dim"],
        "attention.key_length_swa": text["head_dim"],
        "attention.value_length_swa": text["head_dim"],
        "attention.layer_norm_rms_epsilon": text["rms_norm_eps"],
        "attention.sliding_window": text["sliding_window"],
        "attention.sliding_window_pattern": [t.startswith("sliding") for t in text["layer_types"]],
        "attention.shared_kv_layers": text["num_kv_shared_layers"],
        "rope.freq_base": rope["full_attention"]["rope_theta"],
        "rope.freq_base_swa": rope["sliding_attention"]["rope_theta"],
        "rope.dimension_count": text["global_head_dim"],
        "rope.dimension_count_swa": text["head_dim"],
    }
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    metadata = {f"gemma4-assistant.{k}": v for k, v in values.items() if v is not None}
    return write_gguf(file, {"general.architecture": "gemma4-assistant"} | metadata, tensors)


def _name(name: str) -> str:
    if not name.startswith("model.layers."):
        stem, _, part = name.rpartition(".")
        return f"{NAMES[stem]}.{part}"
    layer, inner = name.removeprefix("model.layers.").split(".", 1)
    if inner == "layer_scalar":
        return f"blk.{layer}.layer_output_scale.weight"
    stem, _, part = inner.rpartition(".")
    return f"blk.{layer}.{NAMES[stem]}.{part}"
