"""Tiny random targets' prediction heads as their families store them, with the names as data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

HIDDEN, INNER, VOCAB, DEPTH, EXPERTS = 32, 24, 64, 3, 4

Config = dict[str, Any]
Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Packaged:
    """A family's head: its config and tensors, and where they are."""

    config: Config
    tensors: Tensors
    head: dict[str, str]
    prefix: str
    order: str = "embedding"
    offset: float = 0.0

    def write(self, folder: Path, **metadata: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        typed = {name: np.ascontiguousarray(a, np.float32) for name, a in self.tensors.items()}
        save_file(typed, folder / "model.safetensors", metadata={"format": "pt"} | metadata)


class _Maker:
    def __init__(self, seed: int, offset: float = 0.0) -> None:
        self.rng, self.offset = np.random.default_rng(seed), offset
        self.tensors: Tensors = {}

    def linear(self, name: str, rows: int, columns: int, bias: bool = False) -> None:
        self.tensors[f"{name}.weight"] = self.rng.normal(0, columns**-0.5, (rows, columns))
        if bias:
            self.tensors[f"{name}.bias"] = self.rng.normal(0, 0.5, rows)

    def norms(self, layer: str, *names: str, width: int = HIDDEN) -> None:
        for name in names:
            self.tensors[f"{layer}.{name}.weight"] = self.rng.normal(1, 0.2, width) - self.offset

    def mlp(self, name: str, inner: int = INNER) -> None:
        for part in ("gate_proj", "up_proj"):
            self.linear(f"{name}.{part}", inner, HIDDEN)
        self.linear(f"{name}.down_proj", HIDDEN, inner)

    def heads(self, name: str, size: int, bias: bool = False, gated: int = 1) -> None:
        self.linear(f"{name}.q_proj", 4 * size * gated, HIDDEN, bias)
        for part in ("k_proj", "v_proj"):
            self.linear(f"{name}.{part}", 2 * size, HIDDEN, bias)
        self.linear(f"{name}.o_proj", HIDDEN, 4 * size)

    def latent(self, name: str) -> None:
        self.linear(f"{name}.q_a_proj", 12, HIDDEN)
        self.norms(name, "q_a_layernorm", width=12)
        self.linear(f"{name}.q_b_proj", 4 * 16, 12)
        self.linear(f"{name}.kv_a_proj_with_mqa", 16 + 8, HIDDEN)
        self.norms(name, "kv_a_layernorm", width=16)
        self.linear(f"{name}.kv_b_proj", 4 * (8 + 12), 16)
        self.linear(f"{name}.o_proj", HIDDEN, 4 * 12)


SIZES: Config = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCAB,
    "rope_theta": 1000.0,
    "max_position_embeddings": 512,
    "architectures": ["Anything"],
}
_ROUTED: Config = {
    "moe_intermediate_size": 16,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "first_k_dense_replace": 2,
    "n_group": 1,
    "topk_group": 1,
    "rope_scaling": None,
    "num_nextn_predict_layers": 1,
}
_LATENT: Config = {
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
}
_DELTA: Config = {
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}
_QWEN_EXPERTS: Config = {
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 12,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}


def _qwen(model_type: str, nested: bool, experts: str) -> Packaged:
    """`experts` is "none", "apart" (one tensor each) or "fused"."""
    make, layer = _Maker(41, offset=1.0), "mtp.layers.0"
    rope = {"rope_theta": 1000.0, "partial_rotary_factor": 0.25, "rope_type": "default"}
    text = SIZES | _DELTA | {"head_dim": 16, "attention_bias": False, "norm_topk_prob": True}
    text |= {"rope_parameters": rope} if nested else {"partial_rotary_factor": 0.25}
    text |= {"full_attention_interval": 3, "mtp_num_hidden_layers": 1}
    if experts == "none":
        make.mlp(f"{layer}.mlp")
    else:
        text |= _QWEN_EXPERTS
        make.linear(f"{layer}.mlp.gate", EXPERTS, HIDDEN)
        make.mlp(f"{layer}.mlp.shared_expert", 12)
        make.linear(f"{layer}.mlp.shared_expert_gate", 1, HIDDEN)
    if experts == "apart":
        for i in range(EXPERTS):
            make.mlp(f"{layer}.mlp.experts.{i}", 16)
    if experts == "fused":
        fused = f"{layer}.mlp.experts"
        make.tensors[f"{fused}.gate_up_proj"] = make.rng.normal(0, 0.2, (EXPERTS, 32, HIDDEN))
        make.tensors[f"{fused}.down_proj"] = make.rng.normal(0, 0.2, (EXPERTS, HIDDEN, 16))
    make.heads(f"{layer}.self_attn", 16, gated=2)
    make.norms(f"{layer}.self_attn", "q_norm", "k_norm", width=16)
    make.norms(layer, "input_layernorm", "post_attention_layernorm")
    make.linear("mtp.fc", HIDDEN, 2 * HIDDEN)
    make.norms("mtp", "pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
    target = "model.language_model" if nested else "model"
    make.norms(target, "norm")
    head = {
        "fc": "mtp.fc.weight",
        "embedding_norm": "mtp.pre_fc_norm_embedding.weight",
        "hidden_norm": "mtp.pre_fc_norm_hidden.weight",
        "norm": "mtp.norm.weight",
        "target_norm": f"{target}.norm.weight",
    }
    config: Config = {"text_config": text | {"model_type": "qwen3_5_text"}} if nested else text
    return Packaged(
        config | {"model_type": model_type}, make.tensors, head, f"{layer}.", offset=1.0
    )


def _nextn(model_type: str, seed: int, latent: bool) -> Packaged:
    make, layer = _Maker(seed), f"model.layers.{DEPTH}"
    config = SIZES | _ROUTED | {"model_type": model_type}
    if latent:
        config |= _LATENT
        make.latent(f"{layer}.self_attn")
    else:
        config |= {"head_dim": 16, "partial_rotary_factor": 0.5, "attention_bias": True}
        config |= {"use_qk_norm": True, "tie_word_embeddings": False}
        make.heads(f"{layer}.self_attn", 16, bias=True)
        make.norms(f"{layer}.self_attn", "q_norm", "k_norm", width=16)
    make.linear(f"{layer}.mlp.gate", EXPERTS, HIDDEN)
    bias = make.rng.normal(0, 0.3, EXPERTS)
    make.tensors[f"{layer}.mlp.gate.e_score_correction_bias"] = bias
    make.mlp(f"{layer}.mlp.shared_experts", 16)
    for i in range(EXPERTS):
        make.mlp(f"{layer}.mlp.experts.{i}", 16)
    make.norms(layer, "input_layernorm", "post_attention_layernorm")
    make.norms(layer, "enorm", "hnorm", "shared_head.norm")
    make.norms("model", "norm")
    make.linear(f"{layer}.eh_proj", HIDDEN, 2 * HIDDEN)
    make.linear(f"{layer}.embed_tokens", VOCAB, HIDDEN)
    make.linear(f"{layer}.shared_head.head", VOCAB, HIDDEN)
    # A tensor of the target's own, which is not to be read.
    make.linear("model.layers.0.self_attn.o_proj", HIDDEN, HIDDEN)
    head = {
        "fc": f"{layer}.eh_proj.weight",
        "embedding_norm": f"{layer}.enorm.weight",
        "hidden_norm": f"{layer}.hnorm.weight",
        "norm": f"{layer}.shared_head.norm.weight",
        "target_norm": "model.norm.weight",
    }
    return Packaged(config, make.tensors, head, f"{layer}.")


def _mimo() -> Packaged:
    make, layer = _Maker(45), "model.mtp_layers.0"
    make.heads(f"{layer}.self_attn", 8, bias=True)
    make.mlp(f"{layer}.mlp")
    make.norms(layer, "input_layernorm", "post_attention_layernorm")
    make.norms(layer, "token_layernorm", "hidden_layernorm", "final_layernorm")
    make.linear(f"{layer}.input_proj", HIDDEN, 2 * HIDDEN)
    make.norms("model", "norm")
    head = {
        "fc": f"{layer}.input_proj.weight",
        "embedding_norm": f"{layer}.token_layernorm.weight",
        "hidden_norm": f"{layer}.hidden_layernorm.weight",
        "norm": f"{layer}.final_layernorm.weight",
        "target_norm": "model.norm.weight",
    }
    config = SIZES | {"model_type": "mimo", "num_nextn_predict_layers": 1}
    return Packaged(config, make.tensors, head, f"{layer}.", order="hidden")


def _nemotron() -> Packaged:
    make, layers = _Maker(46), "mtp.layers"
    for part, rows in (("q", 4), ("k", 2), ("v", 2)):
        make.linear(f"{layers}.0.mixer.{part}_proj", rows * 16, HIDDEN)
    make.linear(f"{layers}.0.mixer.o_proj", HIDDEN, 4 * 16)
    experts = f"{layers}.1.mixer"
    make.linear(f"{experts}.gate", EXPERTS, HIDDEN)
    bias = make.rng.normal(0, 0.3, EXPERTS)
    make.tensors[f"{experts}.gate.e_score_correction_bias"] = bias
    make.linear(f"{experts}.fc1_latent_proj", 12, HIDDEN)
    make.linear(f"{experts}.fc2_latent_proj", HIDDEN, 12)
    for i in range(EXPERTS):
        make.linear(f"{experts}.experts.{i}.up_proj", 16, 12)
        make.linear(f"{experts}.experts.{i}.down_proj", 12, 16)
    make.linear(f"{experts}.shared_experts.up_proj", 20, HIDDEN)
    make.linear(f"{experts}.shared_experts.down_proj", HIDDEN, 20)
    make.norms(f"{layers}.0", "norm", "enorm", "hnorm")
    make.norms(f"{layers}.1", "norm", "final_layernorm")
    make.norms("backbone", "norm_f")
    make.linear(f"{layers}.0.eh_proj", HIDDEN, 2 * HIDDEN)
    make.tensors[f"{layers}.0.mixer.k_scale"] = np.ones(1)  # a leftover of quantisation
    head = {
        "fc": f"{layers}.0.eh_proj.weight",
        "embedding_norm": f"{layers}.0.enorm.weight",
        "hidden_norm": f"{layers}.0.hnorm.weight",
        "norm": f"{layers}.1.final_layernorm.weight",
        "target_norm": "backbone.norm_f.weight",
    }
    config = SIZES | _ROUTED | {"model_type": "nemotron_h", "layer_norm_epsilon": 1e-6}
    del config["rms_norm_eps"]
    config |= {"head_dim": 16, "attention_bias": False, "mlp_bias": False, "use_bias": False}
    config |= {"mamba_num_heads": 2, "mamba_head_dim": 8, "mamba_proj_bias": False}
    config |= {"ssm_state_size": 8, "conv_kernel": 4, "n_groups": 1, "use_conv_bias": True}
    config |= {"moe_shared_expert_intermediate_size": 20, "moe_latent_size": 12}
    config |= {"hybrid_override_pattern": "M*E", "mtp_hybrid_override_pattern": "*E"}
    return Packaged(config, make.tensors, head, f"{layers}.")


HEADS: dict[str, Callable[[], Packaged]] = {
    "qwen3_5": lambda: _qwen("qwen3_5", True, "none"),
    "qwen3_5_moe": lambda: _qwen("qwen3_5_moe", True, "fused"),
    "qwen3_5_moe_apart": lambda: _qwen("qwen3_5_moe", True, "apart"),
    "qwen3_next": lambda: _qwen("qwen3_next", False, "apart"),
    "deepseek_v3": lambda: _nextn("deepseek_v3", 42, True),
    "kimi_k2": lambda: _nextn("kimi_k2", 42, True),
    "glm4_moe": lambda: _nextn("glm4_moe", 43, False),
    "glm4_moe_lite": lambda: _nextn("glm4_moe_lite", 44, True),
    "nemotron_h": _nemotron,
    "mimo": _mimo,
}


def _speculators(text: Config, tensors: Tensors, offset: float) -> Packaged:
    """vLLM's packaging: one layer with the head's tensors in it, and nothing of the target's."""
    layer = "mtp_layers.0"
    config: Config = {
        "architectures": ["MTPDraftModel"],
        "speculators_model_type": "mtp",
        "num_nextn_predict_layers": 1,
        "speculators_config": {"proposal_methods": [{"speculative_tokens": 3}]},
        "transformer_layer_config": text,
    }
    head = {
        "fc": f"{layer}.input_proj.weight",
        "embedding_norm": f"{layer}.token_layernorm.weight",
        "hidden_norm": f"{layer}.hidden_layernorm.weight",
        "norm": f"{layer}.final_layernorm.weight",
    }
    return Packaged(config, tensors, head, f"{layer}.", offset=offset)


def _renamed(model_type: str, nested: bool, experts: str) -> Packaged:
    """A Qwen target's head under vLLM's names."""
    made = _qwen(model_type, nested, experts)
    to = "mtp_layers.0."
    renamed: Tensors = {}
    for name, array in made.tensors.items():
        for old, new in {
            "mtp.fc.": f"{to}input_proj.",
            "mtp.norm.": f"{to}final_layernorm.",
            "mtp.pre_fc_norm_hidden.": f"{to}hidden_layernorm.",
            "mtp.pre_fc_norm_embedding.": f"{to}token_layernorm.",
            "mtp.layers.0.": to,
        }.items():
            if name.startswith(old):
                renamed[new + name.removeprefix(old)] = array
    text = made.config.get("text_config", made.config)
    kind = f"{model_type}_text" if nested else model_type
    return _speculators(text | {"model_type": kind}, renamed, made.offset)


def _qwen3() -> Packaged:
    """A head that was trained for a target without one."""
    make, layer = _Maker(47), "mtp_layers.0"
    make.heads(f"{layer}.self_attn", 16)
    make.norms(f"{layer}.self_attn", "q_norm", "k_norm", width=16)
    make.mlp(f"{layer}.mlp")
    make.norms(layer, "input_layernorm", "post_attention_layernorm")
    make.norms(layer, "token_layernorm", "hidden_layernorm", "final_layernorm")
    make.linear(f"{layer}.input_proj", HIDDEN, 2 * HIDDEN)
    text = SIZES | {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": False}
    del text["rope_theta"]
    text["rope_parameters"] = {"rope_theta": 1000.0, "rope_type": "default"}
    return _speculators(text, make.tensors, 0.0)


LONE_HEADS: dict[str, Callable[[], Packaged]] = {
    "qwen3": _qwen3,
    "speculators qwen3_5": lambda: _renamed("qwen3_5", True, "none"),
    "speculators qwen3_5_moe": lambda: _renamed("qwen3_5_moe", True, "fused"),
    "speculators qwen3_next": lambda: _renamed("qwen3_next", False, "fused"),
}
