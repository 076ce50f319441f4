"""Tiny random models of many mlx-lm families, float32, each with its family's quirks."""

from __future__ import annotations

import importlib
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

VOCAB = 64
LAYERS = 3

_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}

_OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [1],
        "moe_intermediate_size": 16,
        "norm_topk_prob": True,
    },
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16},
    "gemma3_text": {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
        "sliding_window_pattern": 2,
    },
    "granite": {
        "logits_scaling": 4.0,
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "cohere": {"use_qk_norm": True},
    "cohere2": {"head_dim": 16, "sliding_window": 8, "sliding_window_pattern": 2},
    "phi3": {},
    "olmo2": {},
    "gpt_oss": {
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "exaone4": {
        "head_dim": 16,
        "rope_scaling": {"rope_type": "default"},
        "sliding_window": 8,
        "sliding_window_pattern": "LG",
    },
    "minicpm": {"dim_model_base": 32, "scale_depth": 1.4, "scale_emb": 12.0},
    "starcoder2": {"norm_epsilon": 1e-5},
    "gpt_neox": {
        "layer_norm_eps": 1e-5,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.5,
        "num_key_value_heads": 4,
    },
    "gpt2": {
        "n_ctx": 128,
        "n_embd": 64,
        "n_head": 4,
        "n_layer": LAYERS,
        "n_positions": 128,
        "layer_norm_epsilon": 1e-5,
        "num_key_value_heads": 4,
    },
}

FAMILIES = tuple(_OWN)


def config_of(family: str) -> dict[str, Any]:
    """The config.json of `tiny`."""
    return {"model_type": family, **_COMMON, **_OWN[family]}


def tiny(family: str, seed: int = 0, **changes: Any) -> nn.Module:
    """A random model of one family, evaluated; matrices twice their usual size, so that every
    position of the context shows in the logits."""
    module = importlib.import_module(f"mlx_lm.models.{family}")
    settings = {**config_of(family), **changes}
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs.from_dict(settings))
    model.update(tree_map(lambda a: 2 * a if a.ndim > 1 else a, model.parameters()))
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    return model


def random_tokens(count: int, seed: int = 1) -> mx.array:
    """Token ids of the tiny vocabulary, int32 `[count]`."""
    return mx.random.randint(0, VOCAB, (count,), dtype=mx.int32, key=mx.random.key(seed))
