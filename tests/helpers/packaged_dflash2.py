"""Tiny random DFlash 2 drafters in both published packagings, and DSpine's.

Codebooks are stored without `.weight`, base kernels `[2, taps, hidden]`, and the projections to
dynamic kernels with rows ordered by side, tap and group.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from helpers.packaged_parts import (
    BLOCK,
    FULL,
    HIDDEN,
    MASK,
    MIXED,
    RANK,
    TAP_KEYS,
    TAPS,
    TARGET_DEPTH,
    VOCAB,
    Tensors,
    backbone,
    tensors_of,
    write,
)


def _tensors(seed: int, layers: int, taps: int, group: int) -> Tensors:
    out = tensors_of(seed, layers=layers, markov=None, confidence_width=None)
    rng = np.random.default_rng(seed + 100)
    for i in range(layers):
        for name in (f"layers.{i}.attention_conv", f"layers.{i}.mlp_conv"):
            kernel = rng.normal(0, 0.4, (2, taps, HIDDEN))
            kernel[:, 0] += 1
            out[f"{name}.base_kernel"] = kernel
            rows = 2 * taps * HIDDEN // group
            out[f"{name}.kernel_projection.weight"] = rng.normal(0, 0.1, (rows, HIDDEN))
    for name in ("predecessor", "successor"):
        out[f"candidate_selector.{name}_codebook"] = rng.normal(0, 1, (VOCAB, RANK))
    hidden = rng.normal(0, 0.3, (RANK, HIDDEN))
    out["candidate_selector.hidden_projection.weight"] = hidden
    return out


def _zlab(folder: Path) -> None:
    """All keys, nested; scaled and capped as for Muse's targets."""
    own: dict[str, Any] = {"block_size": BLOCK, "conv_kernel_size": 2, "conv_group_size": 8}
    own |= {"selector_rank": RANK, "selector_top_k": 5}
    own |= {"output_multiplier": 0.7, "input_embedding_scale": 1.3, "final_logit_softcapping": 3.0}
    config = backbone(MIXED, architectures=["DFlash2DraftModel"], is_causal=False)
    config |= {"num_target_layers": TARGET_DEPTH, "dflash_config": TAP_KEYS | own}
    write(folder, config, _tensors(31, 3, 2, 8))


def _bare(folder: Path) -> None:
    """An alias of the class, flat, with the keys lost that the tensors show; for Gemma."""
    config = backbone(MIXED, architectures=["DFlash2BeamDraftModel"], is_causal=None)
    config |= TAP_KEYS | {"block_size": BLOCK, "final_logit_softcapping": 4.0}
    write(folder, config, _tensors(32, 3, 3, 16))


def _speculators(folder: Path, layer_types: list[str] = MIXED, **keys: Any) -> None:
    config = {
        "architectures": ["DFlash2DraftModel"],
        "speculators_model_type": "dflash2",
        "transformer_layer_config": backbone(layer_types),
        "aux_hidden_state_layer_ids": [i + 1 for i in TAPS],
        "block_size": BLOCK,
        "mask_token_id": MASK,
        "draft_vocab_size": VOCAB,
        "conv_kernel_size": 2,
        "conv_group_size": 16,
        "selector_rank": RANK,
        "selector_top_k": 4,
    }
    tensors = _tensors(33, len(layer_types), 2, 16)
    tensors["mask_embedding"] = np.random.default_rng(80).normal(0, 1.0, HIDDEN)  # to be ignored
    write(folder, config | keys, tensors)


def _dspine(folder: Path, architecture: str = "DSpineDraftModel", **keys: Any) -> None:
    """SpecForge's DSpine: DFlash's tensors, injections and codes of the tokens."""
    rank, message = 6, 10
    out = tensors_of(34, layers=2, markov=None, confidence_width=None)
    rng = np.random.default_rng(134)
    for i in range(2):
        out[f"injection.readouts.{i}.weight"] = rng.normal(0, 1, (rank, HIDDEN))
        out[f"injection.writes.{i}.weight"] = rng.normal(0, 0.3, (HIDDEN, message))
    for name in ("message", "receiver_gate", "predecessor_gate"):
        out[f"injection.{name}.weight"] = rng.normal(0, 0.4, (message, rank))
    out["injection.bias"] = rng.normal(0, 0.5, message)
    codes = rng.normal(0, 1, (VOCAB, rank))
    out["transfer_codes"] = codes / np.linalg.norm(codes, axis=1, keepdims=True)
    out["transfer_ready"] = np.ones(())
    own = {"transfer_rank": rank, "message_size": message, "top_k": 5}
    config = backbone(FULL, architectures=[architecture], dspine_config=own)
    config |= {"dflash_config": TAP_KEYS | {"block_size": BLOCK}, "num_target_layers": TARGET_DEPTH}
    write(folder, config | keys, out)


DFLASH2: dict[str, Callable[[Path], None]] = {
    "dflash2": _zlab,
    "dflash2_bare": _bare,
    "speculators_dflash2": _speculators,
    "speculators_dflash2_causal": lambda f: _speculators(f, sliding_window_non_causal=False),
    "dspine": _dspine,
    "dspine_renamed": lambda f: _dspine(f, "DFlashDraftModel", dspine_config={"top_k": 4}),
    "speculators_dflash2_full": lambda f: _speculators(f, FULL, is_causal=True),
}
