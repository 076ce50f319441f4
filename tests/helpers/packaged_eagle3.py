"""Tiny random Eagle3 drafters as DeepSpec publishes them, written to disk.

Written from section 3 of the specification of published checkpoints alone, without the project's
converters. Taps are the target's out(i) of `TAPS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from helpers.packaged_parts import Config, Tensors, backbone, write

TAPS, STEPS = [0, 1, 2, 3, 5], 4


def tensors_of(
    seed: int, config: Config, heads: int, kv_heads: int, head_dim: int, gemma: bool
) -> Tensors:
    """The tensor list of section 3 (c)."""
    rng = np.random.default_rng(seed)
    hidden, inner, vocab = (
        config[key] for key in ("hidden_size", "intermediate_size", "vocab_size")
    )
    shapes = {
        "fc": (hidden, len(TAPS) * hidden),
        "self_attn.q_proj": (heads * head_dim, 2 * hidden),
        "self_attn.k_proj": (kv_heads * head_dim, 2 * hidden),
        "self_attn.v_proj": (kv_heads * head_dim, 2 * hidden),
        "self_attn.o_proj": (hidden, heads * head_dim),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    norms = ["hidden_norm", "input_layernorm", "post_attention_layernorm"]
    if gemma:
        del shapes["self_attn.v_proj"]
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    out: Tensors = {
        "embed_tokens.weight": rng.normal(0, 1.0, (vocab, hidden)),
        "lm_head.weight": rng.normal(0, 0.4, (vocab, hidden)),
        "norm.weight": rng.normal(1.0, 0.2, hidden),
    }
    for name, shape in shapes.items():
        layer = "" if name == "fc" else "layers.0."
        out[f"{layer}{name}.weight"] = rng.normal(0, shape[1] ** -0.5, shape)
    for name in norms:
        out[f"layers.0.{name}.weight"] = rng.normal(1.0, 0.2, hidden)
    for name in ("q_norm", "k_norm"):
        out[f"layers.0.self_attn.{name}.weight"] = rng.normal(1.0, 0.2, head_dim)
    if gemma:
        out["layers.0.layer_scalar"] = np.array([0.8])
    return out


def _keys(architecture: str, depth: int) -> Config:
    """Section 3 (b): what the builder adds to the target's configuration."""
    return {
        "architectures": [architecture],
        "num_hidden_layers": 1,
        "draft_num_hidden_layers": 1,
        "layer_types": ["full_attention"],
        "num_target_layers": depth,
        "target_model_name_or_path": "tiny/target",
        "target_layer_ids": TAPS,
        "ttt_length": STEPS,
        "step_loss_decay": 0.8,
        "tie_word_embeddings": False,
    }


def qwen3(folder: Path, **changes: Any) -> None:
    """`Qwen3Eagle3Model`; `changes` fit it to a target."""
    config = backbone(["full_attention"]) | _keys("Qwen3Eagle3Model", 6) | changes
    sizes = (config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    heads, kv_heads, head_dim = sizes
    write(folder, config, tensors_of(21, config, heads, kv_heads, head_dim, gemma=False))


def gemma4(folder: Path, **changes: Any) -> None:
    """`Gemma4Eagle3Model`: keys of section 2, one K/V head whose keys are the values."""
    rotated = {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"}
    local = {"rope_theta": 1e4, "rope_type": "default"}
    both = {"full_attention": rotated, "sliding_attention": local}
    config = backbone(
        ["full_attention"],
        model_type="gemma4_text",
        target_model_type="gemma4_unified",
        target_text_model_type="gemma4_unified_text",
        global_head_dim=16,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        sliding_window=24,
        rope_parameters=both | {"rope_theta": None, "rope_type": "default"},
        final_logit_softcapping=3.0,
        hidden_activation="gelu_pytorch_tanh",
        hidden_size_per_layer_input=0,
        enable_moe_block=False,
        num_kv_shared_layers=0,
    )
    del config["hidden_act"], config["use_sliding_window"]
    config |= _keys("Gemma4Eagle3Model", 6) | changes
    keys = ("num_attention_heads", "num_global_key_value_heads", "global_head_dim")
    heads, kv_heads, head_dim = (config[k] for k in keys)
    write(folder, config, tensors_of(22, config, heads, kv_heads, head_dim, gemma=True))


EAGLE3: dict[str, Callable[..., None]] = {"qwen3": qwen3, "gemma4": gemma4}
