"""Tiny random drafters, written to disk in each published packaging.

Written from `shared/checkpoint-formats.md` alone, without the project's converters; the section is
named beside each packaging. Weights are float32 with a fixed seed per packaging. Taps are always
the target's out(0), out(2), out(4); only their spelling differs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from helpers.packaged_dflash2 import DFLASH2
from helpers.packaged_nemotron import nemotron
from helpers.packaged_parts import (
    BLOCK,
    BLOCK_KEYS,
    DEEPSPEC,
    DRAFT_VOCAB,
    FULL,
    HEAD_KEYS,
    HIDDEN,
    MASK,
    MIXED,
    RANK,
    TAP_KEYS,
    TAPS,
    TARGET_DEPTH,
    TARGET_HIDDEN,
    VOCAB,
    Config,
    Tensors,
    backbone,
    tensors_of,
    write,
)
from helpers.packaged_xpress import XPRESS


def _deepspec(folder: Path, seed: int, kind: str | None, **changes: Any) -> None:
    """Sections 1 and 13: embed_tokens and lm_head stored, every key at top level."""
    off = {"markov_rank": 0, "enable_confidence_head": False}
    heads = HEAD_KEYS | {"markov_head_type": kind} if kind else off
    config = backbone(architectures=["Qwen3DSparkModel"]) | DEEPSPEC | heads | changes
    width = HIDDEN + RANK if kind else None
    tensors = tensors_of(seed, markov=kind, confidence_width=width, embed=True, head=True)
    write(folder, config, tensors)


def _deepspec_gemma4(folder: Path) -> None:
    """Section 2."""
    rotated = {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"}
    local = {"rope_theta": 1e4, "rope_type": "default"}
    both = {"full_attention": rotated, "sliding_attention": local}
    config = backbone(
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
    tensors = tensors_of(5, head_dim=16, kv_heads=1, sandwich=True, embed=True, head=True)
    write(folder, config | DEEPSPEC | HEAD_KEYS, tensors)


def _ornith(folder: Path) -> None:
    """Section 13, Qwen35DSparkModel: gated q_proj, 4 of 16 dims rotate, norms stored as w - 1."""
    rope = {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 0.25}
    config = backbone(
        architectures=["Qwen35DSparkModel"],
        model_type="qwen3_5_text",
        head_dim=16,
        rope_parameters=rope,
        partial_rotary_factor=0.25,
        enable_qwen35_gated_q_proj=True,
        confidence_temperatures=[1.0, 1.1, 1.2, 1.3, 1.4],
    )
    tensors = tensors_of(14, head_dim=16, gated_q=True, norm_offset=1.0, embed=True, head=True)
    write(folder, config | DEEPSPEC | HEAD_KEYS, tensors)


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
        "transformer_layer_config": backbone(layer_types),
        "aux_hidden_state_layer_ids": [i + 1 for i in TAPS],
        "block_size": BLOCK,
        "mask_token_id": MASK,
        "draft_vocab_size": VOCAB,
        "target_hidden_size": None,
        "sliding_window_non_causal": False,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    write(folder, config | (HEAD_KEYS if kind == "dspark" else {}) | keys, tensors)


def _speculators_dspark(folder: Path) -> None:
    tensors = tensors_of(
        6, layers=3, target_hidden=TARGET_HIDDEN, draft_vocab=DRAFT_VOCAB, embed=True, head=True
    )
    keys = {"draft_vocab_size": DRAFT_VOCAB, "target_hidden_size": TARGET_HIDDEN}
    _speculators(folder, "dspark", MIXED, tensors, sample_from_anchor=True, **keys)


def _speculators_dspark_bonus(folder: Path) -> None:
    _speculators(folder, "dspark", MIXED, tensors_of(7, layers=3), sliding_window_non_causal=True)


def _speculators_dflash(folder: Path) -> None:
    tensors = tensors_of(8, markov=None, confidence_width=None, draft_vocab=DRAFT_VOCAB, head=True)
    tensors["mask_embedding"] = np.random.default_rng(80).normal(0, 1.0, HIDDEN)  # to be ignored
    _speculators(folder, "dflash", FULL, tensors, draft_vocab_size=DRAFT_VOCAB)


def _specforge(folder: Path, seed: int, prefix: str, repeat: bool, **changes: Any) -> None:
    """Section 6.2, 6.3: heads' keys inside dflash_config, no embed_tokens and no lm_head."""
    nested = TAP_KEYS | HEAD_KEYS | {"projector_type": "dspark", "attention_mode": "gqa"}
    config = backbone(
        architectures=["DSparkDraftModel"],
        auto_map={"AutoModel": "dspark.DSparkDraftModel"},
        dflash_config=nested | {"confidence_head_alpha": 1.0},
    )
    heads = ("markov_head.", "confidence_head.")
    tensors = {(prefix if k.startswith(heads) else "") + k: v for k, v in tensors_of(seed).items()}
    write(folder, config | BLOCK_KEYS | (HEAD_KEYS if repeat else {}) | changes, tensors)


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
    config = backbone(
        architectures=["Qwen3DSparkModel"],
        projector_type="dspark",
        attention_mode="gqa",
        draft_vocab_size=VOCAB,
    )
    write(folder, config | TAP_KEYS | BLOCK_KEYS | HEAD_KEYS, tensors_of(11))


def _lfm2(folder: Path) -> None:
    """Section 7: block 9, interleaved rotary pairs, confidence_head_with_markov absent but true."""
    config = backbone(
        architectures=["Lfm2DSparkDraftModel"],
        block_size=9,
        rope_theta=10000.0,
        rope_is_neox_style=False,
        dflash_config=TAP_KEYS | {"num_target_layers": TARGET_DEPTH},
    )
    del config["rope_parameters"]
    heads = {k: v for k, v in HEAD_KEYS.items() if k != "confidence_head_with_markov"}
    write(folder, config | heads, tensors_of(12))


def _dflash(folder: Path, seed: int, nested: bool, **keys: Any) -> None:
    """Section 9.1: older files are flat with rope_theta, newer ones keep block_size nested."""
    layer_types = MIXED if nested else FULL
    config = backbone(layer_types, architectures=["DFlashDraftModel"])
    config |= {"num_target_layers": TARGET_DEPTH, "dflash_config": TAP_KEYS | keys}
    if nested:
        config["dflash_config"]["block_size"] = BLOCK
    else:
        del config["rope_parameters"]
        config |= {"rope_theta": 10000.0, "rope_scaling": None, "block_size": BLOCK}
        config["final_logit_softcapping"] = 3.0
    tensors = tensors_of(seed, layers=len(layer_types), markov=None, confidence_width=None)
    write(folder, config, tensors)


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
    "jetspec": lambda f: _dflash(f, 17, nested=False, causal_head=True),
    "ornith": _ornith,
    "mislabelled": lambda f: _deepspec(f, 16, "vanilla", architectures=["DFlashDraftModel"]),
    "nemotron": nemotron,
    **DFLASH2,
    **XPRESS,
}
