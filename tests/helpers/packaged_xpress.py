"""Tiny random XPress drafters in vLLM's packaging: DFlash's tensors and a refiner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from helpers.packaged_parts import (
    BLOCK,
    DRAFT_VOCAB,
    FULL,
    HIDDEN,
    MASK,
    MIXED,
    RANK,
    TAPS,
    VOCAB,
    backbone,
    tensors_of,
    write,
)


def _xpress(folder: Path, seed: int, layer_types: list[str], vocab: int, **keys: Any) -> None:
    """Section 20.4; the mixing is stored whole, with numbers above its diagonal."""
    out = tensors_of(
        seed,
        layers=len(layer_types),
        markov=None,
        draft_vocab=vocab,
        confidence_width=None,
        head=vocab < VOCAB,
    )
    rng = np.random.default_rng(seed + 100)
    for name, shape, std in (
        ("token_embed", (VOCAB, RANK), 1.0),
        ("down_h", (RANK, HIDDEN), 0.3),
        ("down_g", (RANK, HIDDEN), 0.6),
        ("in_proj", (RANK, 3 * RANK), 0.5),
        ("mlp_gate", (2 * RANK, RANK), 0.7),
        ("mlp_up", (2 * RANK, RANK), 0.7),
        ("mlp_down", (RANK, 2 * RANK), 0.5),
        ("readout", (vocab, RANK), 1.0),
    ):
        out[f"refiner_head.{name}.weight"] = rng.normal(0, std, shape)
    out["refiner_head.mix_l"] = rng.normal(0, 0.6, (RANK, BLOCK, BLOCK))
    config = {
        "architectures": ["XPressDraftModel"],
        "speculators_model_type": "xpress",
        "transformer_layer_config": backbone(layer_types),
        "aux_hidden_state_layer_ids": [i + 1 for i in TAPS],
        "block_size": BLOCK,
        "mask_token_id": MASK,
        "draft_vocab_size": vocab,
        "xpress_rank": RANK,
        "xpress_mlp_ratio": 2,
        "num_jacobi_passes": 6,
    }
    write(folder, config | keys, out)


XPRESS: dict[str, Callable[[Path], None]] = {
    "speculators_xpress": lambda f: _xpress(f, 41, MIXED, VOCAB, sample_from_anchor=False),
    "speculators_xpress_anchor": lambda f: _xpress(f, 42, FULL, VOCAB, sample_from_anchor=True),
    "speculators_xpress_reduced": lambda f: _xpress(f, 43, FULL, DRAFT_VOCAB),
}
