"""z-lab's DFlash 2 packaging (`DFlash2DraftModel` and aliases of the class).

DFlash's packaging with convolutions around the sublayers and a selector of tokens. The anchor's row
gives no logits unless `sample_from_anchor` is set. A window is measured from each row, whose own
place is part of its width. Sizes of the convolutions and the selector are read from the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...drafters.convolution import BASE, KERNEL, SUBLAYERS
from ...drafters.dflash2.config import DFlash2Config
from ...drafters.dflash2.selector import PREDECESSOR, PROJECTION
from ...errors import InputError
from .names import adapt as adapt
from .names import rename as rename
from .rope import read_rope
from .source import Shapes, Source
from .specforge import sliding

NAME = "z-lab DFlash 2"
ARCHITECTURES = ("DFlash2DraftModel", "DFlash2BeamDraftModel", "MiniMaxDFlash2DraftModel")

# z-lab's and vLLM's default; no tensor's shape shows it.
_TOP_K = 16
# Conventions of MiniMax' and MiMo's drafters.
_UNSUPPORTED = ("use_gemma_norm", "swiglu_alpha", "swiglu_limit", "attention_value_scale")


def selects(shapes: Shapes) -> bool:
    """Whether a checkpoint has a selector's tensors."""
    return f"{PROJECTION}.weight" in shapes


def matches(config: dict[str, Any], shapes: Shapes) -> bool:
    """True for the architectures' names, and for a selector's tensors under another name."""
    named = config.get("architectures") in [[name] for name in ARCHITECTURES]
    borrowed = "speculators_model_type" in config or "format" in config
    return (named or selects(shapes)) and "fc.weight" in shapes and not borrowed


def to_drafter_config(
    config: dict[str, Any], shapes: Shapes, where: Path, *, keep_embeddings: bool
) -> DFlash2Config:
    """The canonical configuration.

    Raises:
        InputError: a key is missing, or has a value that is not supported.
    """
    source = Source(config, shapes, where, NAME)
    values = dict(config) | source.nested("dflash_config")
    backbone = source.shape_of_backbone()
    depth = values.get("num_target_layers")
    return source.finish_as(
        DFlash2Config,
        **backbone,
        **source.taps(source.need("target_layer_ids", values)),
        **source.copies(keep_embeddings),
        **read_rope(source),
        **sliding(source, values, backbone["num_layers"], less=1, by_row=True),
        **own_keys(source, values, backbone["hidden_size"]),
        target_num_layers=0 if depth is None else source.whole("num_target_layers", values),
        block_size=source.whole("block_size", values),
        mask_token_id=source.need("mask_token_id", values),
    )


def own_keys(source: Source, values: Mapping[str, Any], hidden: int) -> dict[str, Any]:
    """The canonical keys that DFlash lacks: convolutions, selector, scales and the first row.

    Args:
        source: the checkpoint, of either packaging.
        values: the object with the keys.
        hidden: the drafter's hidden size.

    Raises:
        InputError: a tensor is missing, or a key contradicts the tensors.
    """
    for key in _UNSUPPORTED:
        if values.get(key):
            source.refuse(key, values[key], "no such key")
    softcap = source.number("final_logit_softcapping", values, default=0.0)
    multiplier = source.number("output_multiplier", values, default=1.0)
    # Muse's targets scale and cap their logits; of the others with a cap, Gemma's, the drafter uses
    # the embedding's scale too.
    scale = math.sqrt(hidden) if softcap and multiplier == 1 else 1.0
    top_k = values.get("selector_top_k")
    return {
        **_convolutions(source, values, hidden),
        "selector_rank": source.stated("selector_rank", values, _rank(source)),
        "selector_top_k": _TOP_K if top_k is None else source.whole("selector_top_k", values),
        "logits_start": 0 if values.get("sample_from_anchor") else 1,
        "softcap": softcap,
        "output_multiplier": multiplier,
        "embedding_scale": scale * source.number("input_embedding_scale", values, default=1.0),
    }


def _convolutions(source: Source, values: Mapping[str, Any], hidden: int) -> dict[str, Any]:
    name = f"layers.0.{SUBLAYERS[0]}"
    base, kernel = (source.shapes.get(f"{name}.{part}") for part in (BASE, f"{KERNEL}.weight"))
    taps, group = 0, 0
    if base or kernel:
        if not base or len(base) != 3 or not kernel or len(kernel) != 2 or not kernel[0]:
            found = f"{name} of {list(base or ())} and {list(kernel or ())}"
            raise InputError(source.where, found, "a base kernel and a projection")
        taps, group = base[1], base[0] * base[1] * hidden // kernel[0]
    return {
        "conv_kernel_size": source.stated("conv_kernel_size", values, taps),
        "conv_group_size": source.stated("conv_group_size", values, group) if taps else 0,
    }


def _rank(source: Source) -> int:
    codebook = source.shapes.get(f"{PREDECESSOR}.weight")
    if codebook is None or len(codebook) != 2:
        found = "no codebook" if codebook is None else f"{list(codebook)}"
        raise InputError(f"{source.where}: {PREDECESSOR}", found, "[vocabulary, rank]")
    return codebook[1]
