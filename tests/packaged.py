"""Tiny random drafters, written to disk in each published packaging.

Written from `shared/checkpoint-formats.md` alone, without the project's converters; the section is
named beside each packaging. Weights are float32 with a fixed seed per packaging. Taps are always
the target's out(0), out(2), out(4); only their spelling differs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
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


def _tensors(
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


def _write(folder: Path, config: Config, tensors: Tensors) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    kinds = {"d2t": np.int64, "t2d": np.bool_}
    typed = {k: np.ascontiguousarray(v, kinds.get(k, np.float32)) for k, v in tensors.items()}
    save_file(typed, folder / "model.safetensors", metadata={"format": "pt"})


def _backbone(layer_types: list[str] = FULL, **changes: Any) -> Config:
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


_HEADS: Config = {
    "markov_rank": RANK,
    "markov_head_type": "vanilla",
    "enable_confidence_head": True,
    "confidence_head_with_markov": True,
}
_TAP_KEYS: Config = {"mask_token_id": MASK, "target_layer_ids": TAPS}
_BLOCK_KEYS: Config = {"block_size": BLOCK, "num_target_layers": TARGET_DEPTH}
_DEEPSPEC: Config = _TAP_KEYS | _BLOCK_KEYS | {"num_anchors": 8}


def _deepspec(folder: Path, seed: int, kind: str | None, **changes: Any) -> None:
    """Sections 1 and 13: embed_tokens and lm_head stored, every key at top level."""
    off = {"markov_rank": 0, "enable_confidence_head": False}
    heads = _HEADS | {"markov_head_type": kind} if kind else off
    config = _backbone(architectures=["Qwen3DSparkModel"]) | _DEEPSPEC | heads | changes
    width = HIDDEN + RANK if kind else None
    tensors = _tensors(seed, markov=kind, confidence_width=width, embed=True, head=True)
    _write(folder, config, tensors)


def _deepspec_gemma4(folder: Path) -> None:
    """Section 2."""
    rotated = {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"}
    local = {"rope_theta": 1e4, "rope_type": "default"}
    both = {"full_attention": rotated, "sliding_attention": local}
    config = _backbone(
        architectures=["Gemma4DSparkModel"],
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
    tensors = _tensors(5, head_dim=16, kv_heads=1, sandwich=True, embed=True, head=True)
    _write(folder, config | _DEEPSPEC | _HEADS, tensors)


def _ornith(folder: Path) -> None:
    """Section 13, Qwen35DSparkModel: gated q_proj, 4 of 16 dims rotate, norms stored as w - 1."""
    rope = {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 0.25}
    config = _backbone(
        architectures=["Qwen35DSparkModel"],
        model_type="qwen3_5_text",
        head_dim=16,
        rope_parameters=rope,
        partial_rotary_factor=0.25,
        enable_qwen35_gated_q_proj=True,
        confidence_temperatures=[1.0, 1.1, 1.2, 1.3, 1.4],
    )
    tensors = _tensors(14, head_dim=16, gated_q=True, norm_offset=1.0, embed=True, head=True)
    _write(folder, config | _DEEPSPEC | _HEADS, tensors)


def _speculators(
    folder: Path, kind: str, layer_types: list[str], tensors: Tensors, **keys: Any
) -> None:
    """Section 5: the backbone is nested and the tap ids are those of DeepSpec plus one."""
    name = "DSparkDraftModel" if kind == "dspark" else "DFlashDraftModel"
    proposed = BLOCK if keys.get("sample_from_anchor") else BLOCK - 1
    proposal = {"proposal_type": "greedy", "speculative_tokens": proposed}
    proposal |= {"accept_tolerance": 0.0, "verifier_accept_k": 1}
    config: Config = {
        "architectures": [name],
        "speculators_model_type": kind,
        "speculators_version": "0.5.0",
        "speculators_config": {
            "algorithm": kind,
            "default_proposal_method": "greedy",
            "proposal_methods": [proposal],
            "verifier": {"name_or_path": "tiny/target", "architectures": ["Qwen3ForCausalLM"]},
        },
        "transformer_layer_config": _backbone(layer_types),
        "aux_hidden_state_layer_ids": [i + 1 for i in TAPS],
        "block_size": BLOCK,
        "mask_token_id": MASK,
        "draft_vocab_size": VOCAB,
        "target_hidden_size": None,
        "sliding_window_non_causal": False,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    _write(folder, config | (_HEADS if kind == "dspark" else {}) | keys, tensors)


def _speculators_dspark(folder: Path) -> None:
    tensors = _tensors(
        6, layers=3, target_hidden=TARGET_HIDDEN, draft_vocab=DRAFT_VOCAB, embed=True, head=True
    )
    keys = {"draft_vocab_size": DRAFT_VOCAB, "target_hidden_size": TARGET_HIDDEN}
    _speculators(folder, "dspark", MIXED, tensors, sample_from_anchor=True, **keys)


def _speculators_dspark_bonus(folder: Path) -> None:
    _speculators(folder, "dspark", MIXED, _tensors(7, layers=3), sliding_window_non_causal=True)


def _speculators_dflash(folder: Path) -> None:
    tensors = _tensors(8, markov=None, confidence_width=None, draft_vocab=DRAFT_VOCAB, head=True)
    tensors["mask_embedding"] = np.random.default_rng(80).normal(0, 1.0, HIDDEN)  # to be ignored
    _speculators(folder, "dflash", FULL, tensors, draft_vocab_size=DRAFT_VOCAB)


def _specforge(folder: Path, seed: int, prefix: str, repeat: bool, **changes: Any) -> None:
    """Section 6.2, 6.3: heads' keys inside dflash_config, no embed_tokens and no lm_head."""
    nested = _TAP_KEYS | _HEADS | {"projector_type": "dspark", "attention_mode": "gqa"}
    config = _backbone(
        architectures=["DSparkDraftModel"],
        auto_map={"AutoModel": "dspark.DSparkDraftModel"},
        dflash_config=nested | {"confidence_head_alpha": 1.0},
    )
    heads = ("markov_head.", "confidence_head.")
    tensors = {(prefix if k.startswith(heads) else "") + k: v for k, v in _tensors(seed).items()}
    _write(folder, config | _BLOCK_KEYS | (_HEADS if repeat else {}) | changes, tensors)


_YARN: Config = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}


def _minicpm5(folder: Path) -> None:
    """Section 6.4: DeepSpec's class name, SpecForge's keys at top level, target embeddings."""
    config = _backbone(
        architectures=["Qwen3DSparkModel"],
        projector_type="dspark",
        attention_mode="gqa",
        draft_vocab_size=VOCAB,
    )
    _write(folder, config | _TAP_KEYS | _BLOCK_KEYS | _HEADS, _tensors(11))


def _lfm2(folder: Path) -> None:
    """Section 7: block 9, interleaved rotary pairs, confidence_head_with_markov absent but true."""
    config = _backbone(
        architectures=["Lfm2DSparkDraftModel"],
        block_size=9,
        rope_theta=10000.0,
        rope_is_neox_style=False,
        dflash_config=_TAP_KEYS | {"num_target_layers": TARGET_DEPTH},
    )
    del config["rope_parameters"]
    heads = {k: v for k, v in _HEADS.items() if k != "confidence_head_with_markov"}
    _write(folder, config | heads, _tensors(12))


def _dflash(folder: Path, seed: int, nested: bool) -> None:
    """Section 9.1: older files are flat with rope_theta, newer ones keep block_size nested."""
    layer_types = MIXED if nested else FULL
    config = _backbone(layer_types, architectures=["DFlashDraftModel"])
    config |= {"num_target_layers": TARGET_DEPTH, "dflash_config": dict(_TAP_KEYS)}
    if nested:
        config["dflash_config"]["block_size"] = BLOCK
    else:
        del config["rope_parameters"]
        config |= {"rope_theta": 10000.0, "rope_scaling": None, "block_size": BLOCK}
        config["final_logit_softcapping"] = 3.0
    tensors = _tensors(seed, layers=len(layer_types), markov=None, confidence_width=None)
    _write(folder, config, tensors)


PACKAGED: dict[str, Callable[[Path], None]] = {
    "deepspec_qwen3": lambda f: _deepspec(f, 1, "vanilla"),
    "deepspec_qwen3_gated": lambda f: _deepspec(f, 2, "gated"),
    "deepspec_qwen3_rnn": lambda f: _deepspec(f, 3, "rnn"),
    "deepspec_dflash_qwen3": lambda f: _deepspec(f, 4, None),
    "deepspec_gemma4": _deepspec_gemma4,
    "speculators_dspark": _speculators_dspark,
    "speculators_dspark_bonus": _speculators_dspark_bonus,
    "speculators_dflash": _speculators_dflash,
    "specforge": lambda f: _specforge(
        f, 9, "", False, rope_parameters=_YARN, sts_temperatures=[1.0, 1.1, 1.2, 1.3, 1.4]
    ),
    "specforge_legacy": lambda f: _specforge(f, 10, "logit_head.", True),
    "minicpm5": _minicpm5,
    "lfm2": _lfm2,
    "dflash": lambda f: _dflash(f, 13, nested=False),
    "dflash_nested": lambda f: _dflash(f, 15, nested=True),
    "ornith": _ornith,
    "mislabelled": lambda f: _deepspec(f, 16, "vanilla", architectures=["DFlashDraftModel"]),
}
