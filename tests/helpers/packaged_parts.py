"""What the tiny published drafters share: their sizes, tensors and config keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

HIDDEN, INTER, HEADS, KV_HEADS, HEAD_DIM, VOCAB, RANK = 32, 48, 4, 2, 8, 64, 4
TARGET_HIDDEN, TARGET_DEPTH, TAPS = 24, 6, [0, 2, 4]
BLOCK, MASK, WINDOW, DRAFT_VOCAB = 5, 63, 6, 40
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
FULL = ["full_attention", "full_attention"]

Config = dict[str, Any]
Tensors = dict[str, np.ndarray]


def tensors_of(
    seed: int,
    *,
    layers: int = 2,
    target_hidden: int = HIDDEN,
    head_dim: int = HEAD_DIM,
    kv_heads: int = KV_HEADS,
    gated_q: bool = False,
    norm_offset: float = 0.0,  # subtracted from every stored RMSNorm weight
    sandwich: bool = False,  # Gemma: four norms per layer, a layer scalar and no v_proj
    markov: str | None = "vanilla",
    draft_vocab: int = VOCAB,
    confidence_width: int | None = HIDDEN + RANK,
    embed: bool = False,
    head: bool = False,
) -> Tensors:
    """The tensor list of section 1 (c), with the variations of the other packagings."""
    rng = np.random.default_rng(seed)
    out: Tensors = {}

    def linear(name: str, rows: int, columns: int, std: float | None = None) -> None:
        std = columns**-0.5 if std is None else std
        out[f"{name}.weight"] = rng.normal(0, std, (rows, columns))

    def norm(name: str, width: int) -> None:
        out[f"{name}.weight"] = rng.normal(1.0, 0.2, width) - norm_offset

    if embed:
        linear("embed_tokens", VOCAB, HIDDEN, std=1.0)
    if head:
        linear("lm_head", draft_vocab, HIDDEN, std=0.4)
    linear("fc", HIDDEN, len(TAPS) * target_hidden)
    norm("hidden_norm", HIDDEN)
    norm("norm", HIDDEN)
    norms = ["input_layernorm", "post_attention_layernorm"]
    if sandwich:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    for i in range(layers):
        for name in norms:
            norm(f"layers.{i}.{name}", HIDDEN)
        attention, mlp = f"layers.{i}.self_attn", f"layers.{i}.mlp"
        linear(f"{attention}.q_proj", HEADS * head_dim * (2 if gated_q else 1), HIDDEN)
        linear(f"{attention}.k_proj", kv_heads * head_dim, HIDDEN)
        if not sandwich:
            linear(f"{attention}.v_proj", kv_heads * head_dim, HIDDEN)
        linear(f"{attention}.o_proj", HIDDEN, HEADS * head_dim)
        norm(f"{attention}.q_norm", head_dim)
        norm(f"{attention}.k_norm", head_dim)
        linear(f"{mlp}.gate_proj", INTER, HIDDEN)
        linear(f"{mlp}.up_proj", INTER, HIDDEN)
        linear(f"{mlp}.down_proj", HIDDEN, INTER)
        if sandwich:
            out[f"layers.{i}.layer_scalar"] = np.array([0.8 + 0.3 * i])
    if markov:
        linear("markov_head.markov_w1", VOCAB, RANK, std=1.0)
        linear("markov_head.markov_w2", draft_vocab, RANK, std=1.0)
    if markov == "gated":
        linear("markov_head.gate_proj", RANK, HIDDEN + RANK)
        out["markov_head.gate_proj.bias"] = rng.normal(0, 0.5, RANK)
    if markov == "rnn":
        linear("markov_head.joint_proj", 3 * RANK, 2 * RANK + HIDDEN)
        out["markov_head.joint_proj.bias"] = rng.normal(0, 0.5, 3 * RANK)
    if confidence_width:
        linear("confidence_head.proj", 1, confidence_width)
        out["confidence_head.proj.bias"] = rng.normal(0, 0.5, 1)
    if draft_vocab < VOCAB:
        ids = np.sort(rng.choice(VOCAB, draft_vocab, replace=False))
        out["d2t"] = ids - np.arange(draft_vocab)  # offsets, not absolute ids
        out["t2d"] = np.isin(np.arange(VOCAB), ids)
    return out


def write(folder: Path, config: Config, tensors: Tensors) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    kinds: dict[str, Any] = {"d2t": np.int64, "t2d": np.bool_}
    typed = {k: np.ascontiguousarray(v, kinds.get(k, np.float32)) for k, v in tensors.items()}
    save_file(typed, folder / "model.safetensors", metadata={"format": "pt"})


def backbone(layer_types: list[str] = FULL, **changes: Any) -> Config:
    sliding = "sliding_attention" in layer_types
    base: Config = {
        "model_type": "qwen3",
        "hidden_size": HIDDEN,
        "intermediate_size": INTER,
        "num_hidden_layers": len(layer_types),
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "max_position_embeddings": 512,
        "layer_types": layer_types,
        "sliding_window": WINDOW if sliding else None,
        "use_sliding_window": sliding,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    return base | changes


HEAD_KEYS: Config = {
    "markov_rank": RANK,
    "markov_head_type": "vanilla",
    "enable_confidence_head": True,
    "confidence_head_with_markov": True,
}
TAP_KEYS: Config = {"mask_token_id": MASK, "target_layer_ids": TAPS}
BLOCK_KEYS: Config = {"block_size": BLOCK, "num_target_layers": TARGET_DEPTH}
DEEPSPEC: Config = TAP_KEYS | BLOCK_KEYS | {"num_anchors": 8}
