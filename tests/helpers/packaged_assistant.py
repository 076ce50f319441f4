"""Tiny random Gemma 4 targets, and assistants for them in Google's packaging.

A target of the kind of E2B and E4B has layers that read keys of earlier ones, and inputs of each
layer's own; its assistant has ordered embeddings.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map
from mlx_lm.models import gemma4_text
from safetensors.numpy import save_file

HIDDEN, TARGET_HIDDEN, VOCAB, WINDOW = 32, 24, 64, 6
OWN = 4
"""How many of a target's layers make keys and values."""
HEADS, HEAD_DIM, GLOBAL_HEAD_DIM, INTER = 4, 8, 16, 20
KINDS = ["sliding_attention", "sliding_attention", "full_attention"]
ROPE = {
    "full_attention": {
        "partial_rotary_factor": 0.25,
        "rope_theta": 1e6,
        "rope_type": "proportional",
    },
    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
}
TARGET: dict[str, Any] = {
    "model_type": "gemma4_text",
    "hidden_size": TARGET_HIDDEN,
    "num_hidden_layers": OWN,
    "intermediate_size": 32,
    "num_attention_heads": HEADS,
    "head_dim": HEAD_DIM,
    "global_head_dim": GLOBAL_HEAD_DIM,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "vocab_size": VOCAB,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * (OWN // 2),
    "rope_parameters": ROPE,
    "rms_norm_eps": 1e-6,
}


SHARED = 4
SHARING: dict[str, Any] = {
    "num_hidden_layers": OWN + SHARED,
    "num_kv_shared_layers": SHARED,
    "layer_types": ["sliding_attention", "full_attention"] * ((OWN + SHARED) // 2),
    "attention_k_eq_v": False,
    "num_key_value_heads": 1,
    "num_global_key_value_heads": None,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB,
    "use_double_wide_mlp": True,
}
"""What E2B's and E4B's kind of target has otherwise."""
CLUSTERS = {
    "use_ordered_embeddings": True,
    "num_centroids": 16,
    "centroid_intermediate_top_k": 3,
}


def target_model(**changes: Any) -> nn.Module:
    """The target, float32; its norms are not all one."""
    mx.random.seed(11)
    model = gemma4_text.Model(gemma4_text.ModelArgs.from_dict(TARGET | changes))

    def spread(a: mx.array) -> mx.array:
        return 2 * a if a.ndim > 1 else a * mx.random.uniform(0.6, 1.4, a.shape)

    model.update(tree_map(spread, model.parameters()))
    mx.eval(model.parameters())
    return model


def write_assistant(folder: Path, **keys: Any) -> None:
    """Section 19.4; the keys' projection of layer 0 is a leftover. `keys` are of config.json."""
    rng = np.random.default_rng(12)
    out: dict[str, np.ndarray] = {}

    def linear(name: str, rows: int, columns: int) -> None:
        out[f"{name}.weight"] = rng.normal(0, columns**-0.5, (rows, columns))

    def norm(name: str, width: int) -> None:
        out[f"{name}.weight"] = rng.normal(1, 0.2, width)

    linear("model.embed_tokens", VOCAB, HIDDEN)
    if keys.get("use_ordered_embeddings"):
        linear("masked_embedding.centroids", keys["num_centroids"], HIDDEN)
        out["masked_embedding.token_ordering"] = rng.permutation(VOCAB)
    linear("pre_projection", HIDDEN, 2 * TARGET_HIDDEN)
    linear("post_projection", TARGET_HIDDEN, HIDDEN)
    norm("model.norm", HIDDEN)
    for i, kind in enumerate(KINDS):
        layer = f"model.layers.{i}"
        size = HEAD_DIM if kind == "sliding_attention" else GLOBAL_HEAD_DIM
        linear(f"{layer}.self_attn.q_proj", HEADS * size, HIDDEN)
        linear(f"{layer}.self_attn.o_proj", HIDDEN, HEADS * size)
        norm(f"{layer}.self_attn.q_norm", size)
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            norm(f"{layer}.{name}_layernorm", HIDDEN)
        linear(f"{layer}.mlp.gate_proj", INTER, HIDDEN)
        linear(f"{layer}.mlp.up_proj", INTER, HIDDEN)
        linear(f"{layer}.mlp.down_proj", HIDDEN, INTER)
        out[f"{layer}.layer_scalar"] = np.array([0.7 + 0.2 * i])
    linear("model.layers.0.self_attn.k_proj", 2 * HEAD_DIM, HIDDEN)
    text = TARGET | {
        "hidden_size": HIDDEN,
        "num_hidden_layers": len(KINDS),
        "num_kv_shared_layers": len(KINDS),
        "intermediate_size": INTER,
        "layer_types": KINDS,
        "final_logit_softcapping": None,
    }
    config = {
        "architectures": ["Gemma4AssistantForCausalLM"],
        "model_type": "gemma4_assistant",
        "backbone_hidden_size": TARGET_HIDDEN,
        "use_ordered_embeddings": False,
        "tie_word_embeddings": True,
        "block_size": 4,
        "text_config": text,
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config | keys))
    typed = {
        name: np.ascontiguousarray(value, np.float32 if value.dtype.kind == "f" else np.int64)
        for name, value in out.items()
    }
    save_file(typed, folder / "model.safetensors", metadata={"format": "pt"})
