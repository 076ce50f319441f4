"""The tiny published drafters as llama.cpp's GGUF files, from `shared/checkpoint-formats.md`, 10.

A file's twin is the safetensors folder with the values that the file's types keep: what the NumPy
reference reads. Rows that are no whole number of blocks stay F16, as llama.cpp leaves them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from dspark_mlx.system.files import read_json
from helpers.gguf_writer import Raw, dequantize, quantize, write_gguf

NAMES = {
    "embed_tokens": "token_embd",
    "lm_head": "output",
    "norm": "output_norm",
    "hidden_norm": "enc.output_norm",
    "markov_head.markov_w1": "markov_w1",
    "markov_head.markov_w2": "markov_w2",
    "confidence_head.proj": "conf_proj",
    "fc": "fc",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "attention_conv.kernel_projection": "attn_conv_proj",
    "mlp_conv.kernel_projection": "ffn_conv_proj",
    "candidate_selector.hidden_projection": "selector_hidden",
    "log_snr_fc1": "log_snr_fc1",
    "log_snr_fc2": "log_snr_fc2",
}
# Names without `.weight` on one side.
WHOLE = {
    "self_attn.attention_sink_bias": "attn_sinks.weight",
    "attention_conv.base_kernel": "attn_conv_base",
    "mlp_conv.base_kernel": "ffn_conv_base",
    "candidate_selector.predecessor_codebook": "selector_predecessor.weight",
    "candidate_selector.successor_codebook": "selector_successor.weight",
}
# PrismML's names of what belongs to no layer.
PRISMML = {
    "fc": "dspark.fc",
    "enc.output_norm": "dspark.hidden_norm",
    "markov_w1": "dspark.markov_head_a",
    "markov_w2": "dspark.markov_head_b",
    "conf_proj": "dspark.confidence_head",
    "log_snr_fc1": "dspark.log_snr_fc1",
    "log_snr_fc2": "dspark.log_snr_fc2",
}
_DOUBLED = ("block_size", "mask_token_id", "target_layers", "markov_rank", "log_snr_conditioning")


def metadata_of(config: dict[str, Any], dspark: bool) -> dict[str, Any]:
    """What llama.cpp's converter writes for one of the packaged configs."""
    keys = config | config.get("dflash_config", {})
    backbone = config.get("transformer_layer_config", config)
    speculators = "speculators_model_type" in config
    taps = keys["aux_hidden_state_layer_ids"] if speculators else keys["target_layer_ids"]
    rope = backbone.get("rope_parameters") or backbone
    values: dict[str, Any] = {
        "block_count": backbone["num_hidden_layers"],
        "context_length": backbone["max_position_embeddings"],
        "embedding_length": backbone["hidden_size"],
        "feed_forward_length": backbone["intermediate_size"],
        "attention.head_count": backbone["num_attention_heads"],
        "attention.head_count_kv": backbone["num_key_value_heads"],
        "attention.key_length": backbone["head_dim"],
        "attention.value_length": backbone["head_dim"],
        "attention.layer_norm_rms_epsilon": backbone["rms_norm_eps"],
        "rope.freq_base": rope["rope_theta"],
        "rope.dimension_count": backbone["head_dim"],
        "block_size": keys["block_size"],
        # Hugging Face's id + 1, which the speculators' ids are already.
        "target_layers": [i if speculators else i + 1 for i in taps],
    }
    if dspark:
        values["sample_from_anchor"] = bool(keys.get("sample_from_anchor", not speculators))
    if keys.get("causal"):
        values["attention.causal"] = True
    for key in ("conv_kernel_size", "conv_group_size", "selector_rank", "selector_top_k"):
        if key in keys:
            values[key] = keys[key]
    if "output_multiplier" in keys:
        values["logit_scale"] = keys["output_multiplier"]
    if rope.get("rope_type") == "yarn":
        scaling = {"type": "yarn", "factor": rope["factor"]}
        scaling["original_context_length"] = rope["original_max_position_embeddings"]
        scaling |= {f"yarn_beta_{x}": rope[f"beta_{x}"] for x in ("fast", "slow")}
        values |= {f"rope.scaling.{key}": value for key, value in scaling.items()}
    kinds = [kind == "sliding_attention" for kind in backbone["layer_types"]]
    if any(kinds):
        window = keys.get("swa_window_size", backbone["sliding_window"])
        values["attention.sliding_window"] = window
        values["attention.sliding_window_pattern"] = kinds
    if softcap := keys.get("final_logit_softcapping"):
        values["final_logit_softcapping"] = softcap
        scale = backbone["hidden_size"] ** 0.5
        values["embedding_scale"] = keys.get("input_embedding_scale", scale)
    return {
        "general.architecture": "dflash",
        **{f"dflash.{key}": value for key, value in values.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(backbone["vocab_size"])],
        "tokenizer.ggml.mask_token_id": keys["mask_token_id"],
    }


def gguf_name(name: str) -> str:
    """llama.cpp's name of a canonical tensor."""
    if name == "d2t":
        return name
    prefix = ""
    if name.startswith("layers."):
        _, layer, name = name.split(".", 2)
        prefix = f"blk.{layer}."
    stem, _, part = name.rpartition(".")
    return prefix + (WHOLE.get(name) or f"{NAMES[stem]}.{part}")


def kind_of(array: np.ndarray, kind: str) -> str:
    if array.ndim != 2:
        return "F32"
    return "F16" if kind.startswith("Q") and array.shape[1] % 32 else kind


def write_twins(folder: Path, file: Path, kind: str, **changes: Any) -> Path:
    """Write `file` from the packaged folder, whose tensors become those that the file keeps.

    Args:
        folder: of a packaged drafter. file: the GGUF file to write. kind: of its matrices.
        changes: metadata without its prefix, with dots as __; None leaves it out.
    """
    config, stored = read_json(folder / "config.json"), load_file(folder / "model.safetensors")
    tensors: dict[str, Any] = {}
    for name, array in stored.items():
        if name == "d2t":  # absolute here, offsets there
            ids = array + np.arange(array.size)
            tensors[name] = Raw(27, ids.astype("<i8").tobytes(), array.shape)
        elif name not in ("t2d", "mask_embedding"):
            form = kind_of(array, kind)
            tensors[gguf_name(name)] = (array, form)
            stored[name] = dequantize(quantize(array, form), form, array.shape)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    metadata = metadata_of(config, "markov_w1.weight" in tensors)
    for key, value in changes.items():
        dotted = key.replace("__", ".")
        metadata[dotted if "." in dotted and "general" in dotted else f"dflash.{dotted}"] = value
    metadata = {key: value for key, value in metadata.items() if value is not None}
    return write_gguf(file, metadata, tensors)


def write_prismml(folder: Path, file: Path, **changes: Any) -> Path:
    """Write `file` as PrismML does (section 11) from a packaged folder, which gets noise levels.

    Args:
        folder, file: see `write_twins`. changes: metadata; None leaves it out.
    """
    config, stored = read_json(folder / "config.json"), load_file(folder / "model.safetensors")
    rng = np.random.default_rng(12)
    hidden = stored["norm.weight"].size
    for name, shape in {
        "log_snr_fc1.weight": (40, 128),
        "log_snr_fc1.bias": (40,),
        "log_snr_fc2.weight": (hidden, 40),
        "log_snr_fc2.bias": (hidden,),
    }.items():
        stored[name] = rng.normal(0, 0.2, shape).astype(np.float32)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    tensors: dict[str, Any] = {}
    for name, array in stored.items():
        stem, _, part = gguf_name(name).rpartition(".")
        array = array[0] if name == "confidence_head.proj.weight" else array
        tensors[f"{PRISMML.get(stem, stem)}.{part}"] = (array, "F32")
    values = {key.removeprefix("dflash."): v for key, v in metadata_of(config, True).items()}
    values["mask_token_id"] = values.pop("tokenizer.ggml.mask_token_id")
    values["target_layers"] = config["target_layer_ids"]  # not shifted
    values |= {"log_snr_conditioning": True, "min_log_snr": -9.0, "max_log_snr": 9.0}
    values |= {"markov_rank": config["markov_rank"], "vocab_size": config["vocab_size"]}
    del values["sample_from_anchor"]
    values |= {"general.architecture": "dspark", "tokenizer.ggml.model": "none"} | changes
    metadata = {}
    for key, value in values.items():
        prefix = "dspark.dspark." if key in _DOUBLED or "log_snr" in key else "dspark."
        metadata[key if key.startswith(("general.", "tokenizer.")) else prefix + key] = value
    return write_gguf(file, {k: v for k, v in metadata.items() if v is not None}, tensors)
