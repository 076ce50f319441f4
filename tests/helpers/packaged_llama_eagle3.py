"""Tiny random Eagle3 drafters as EAGLE, SpecForge and vLLM publish them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from helpers.packaged_parts import DRAFT_VOCAB, HIDDEN, INTER, VOCAB, Tensors, write

TAPS, DEPTH, HEADS, KV_HEADS, SIZE = [1, 2, 3], 8, 4, 2, 8


def _tensors(
    seed: int,
    layer: str,
    target: int = HIDDEN,
    norms: str = "none",
    head_norms: bool = False,
    embed: bool = True,
) -> Tensors:
    """`norms` before fc: "none", "each", "old" names of those, or "all"."""
    rng = np.random.default_rng(seed)
    out: Tensors = {}

    def linear(name: str, rows: int, columns: int) -> None:
        out[f"{name}.weight"] = rng.normal(0, columns**-0.5, (rows, columns))

    def norm(name: str, width: int = HIDDEN) -> None:
        out[f"{name}.weight"] = rng.normal(1, 0.3, width)

    linear("fc", HIDDEN, 3 * target)
    norm("norm")
    for name in ("hidden_norm", "input_layernorm", "post_attention_layernorm"):
        norm(f"{layer}.{name}")
    for part, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
        linear(f"{layer}.self_attn.{part}_proj", heads * SIZE, 2 * HIDDEN)
    linear(f"{layer}.self_attn.o_proj", HIDDEN, HEADS * SIZE)
    if head_norms:
        norm(f"{layer}.self_attn.q_norm", SIZE)
        norm(f"{layer}.self_attn.k_norm", SIZE)
    for part in ("gate_proj", "up_proj"):
        linear(f"{layer}.mlp.{part}", INTER, HIDDEN)
    linear(f"{layer}.mlp.down_proj", HIDDEN, INTER)
    linear("lm_head", DRAFT_VOCAB, HIDDEN)
    if embed:
        out["embed_tokens.weight"] = rng.normal(0, 0.7, (VOCAB, HIDDEN))
    if norms == "each":
        for i in range(3):
            norm(f"fc_norm.{i}", target)
    if norms == "old":
        for name in ("low", "mid", "high"):
            norm(f"aux_norm_{name}", target)
    if norms == "all":
        norm("input_norm", 3 * target)
    ids = np.sort(rng.choice(VOCAB, DRAFT_VOCAB, replace=False))
    out["d2t"] = ids - np.arange(DRAFT_VOCAB)
    out["t2d"] = np.isin(np.arange(VOCAB), ids)
    return out


_LLAMA: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": INTER,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "hidden_act": "silu",
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000.0,
    "max_position_embeddings": 512,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def _eagle(folder: Path) -> None:
    """EAGLE's own: no ids of taps; here the target's depth gives 1, 3, 4 as outputs."""
    config = _LLAMA | {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": DRAFT_VOCAB}
    config |= {"rope_scaling": _LLAMA3, "num_target_layers": DEPTH}
    write(folder, config, _tensors(51, "midlayer"))


def _specforge(folder: Path) -> None:
    """Ids nested: outputs of the layers; the older names of the taps' norms."""
    nested = {"eagle_aux_hidden_state_layer_ids": TAPS, "use_aux_hidden_state": True}
    config = _LLAMA | {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": DRAFT_VOCAB}
    config |= {"eagle_config": nested, "head_dim": SIZE, "rope_scaling": None}
    write(folder, config, _tensors(52, "midlayer", norms="old", embed=False))


def _speculators(folder: Path, seed: int, tensors: dict[str, Any], **keys: Any) -> None:
    """Ids at the top: inputs of the layers."""
    proposal = {"proposal_type": "greedy", "speculative_tokens": 4}
    config = {
        "architectures": ["Eagle3DraftModel"],
        "speculators_model_type": "eagle3",
        "speculators_config": {"proposal_methods": [proposal]},
        "transformer_layer_config": _LLAMA | {"head_dim": SIZE, "model_type": "llama"},
        "eagle_aux_hidden_state_layer_ids": [i + 1 for i in TAPS],
        "draft_vocab_size": DRAFT_VOCAB,
        "target_hidden_size": None,
    }
    write(folder, config | keys, _tensors(seed, "layers.0", **tensors))


MASK = 5


def _peagle(folder: Path, seed: int, layers: int, tensors: dict[str, Any], **keys: Any) -> None:
    """P-EAGLE: a learnt feature and mask token; later layers read rows alone."""
    llama = _LLAMA | {"head_dim": SIZE, "model_type": "llama", "num_hidden_layers": layers}
    config = {"transformer_layer_config": llama, "mask_token_id": MASK, "norm_output": False}
    _speculators(folder, seed, tensors, speculators_model_type="peagle", **config | keys)
    rng = np.random.default_rng(seed + 100)
    stored: Tensors = dict(load_file(folder / "model.safetensors"))
    stored["mask_hidden"] = rng.normal(0, 1, (1, 1, stored["fc.weight"].shape[1]))
    for i in range(1, layers):
        for name, array in list(stored.items()):
            inner = name.removeprefix("layers.0.")
            if inner == name or inner.startswith("hidden_norm"):
                continue
            wide = inner.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))
            other = rng.permuted(array[:, :HIDDEN] if wide else array, axis=0)
            stored[f"layers.{i}.{inner}"] = other
    write(folder, json.loads((folder / "config.json").read_text()), stored)


PEAGLE: dict[str, Callable[[Path], None]] = {
    "one layer": lambda f: _peagle(f, 56, 1, {}),
    "three layers": lambda f: _peagle(f, 57, 3, {"norms": "each"}, norm_before_residual=True),
}

LLAMA_EAGLE3: dict[str, Callable[[Path], None]] = {
    "eagle": _eagle,
    "specforge": _specforge,
    "speculators": lambda f: _speculators(f, 53, {"head_norms": True}, norm_before_residual=True),
    "speculators_3.1": lambda f: _speculators(f, 54, {"norms": "each"}, norm_output=True),
    "speculators_wide": lambda f: _speculators(
        f, 55, {"target": 40, "norms": "all"}, target_hidden_size=40
    ),
}
