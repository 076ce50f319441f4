"""SpecForge's packaging of DSpine drafters (`DSpineDraftModel`).

DFlash's packaging with injections: rows of the block attend to earlier ones alone, in all layers,
and the anchor's row gives no logits. The original release has its codes in a file of their own and
a config that contradicts its weights; it is read after SpecForge's converter has joined them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...drafters.dspine.config import DSpineConfig
from ...drafters.dspine.injection import BIAS, CODES, MESSAGE, readout_name
from ...errors import InputError
from .names import rename as rename
from .rope import read_rope
from .source import Shapes, Source

NAME = "SpecForge DSpine"
_TOP_K = 16
# Of a code's length, which is 1 but for the rounding of its type.
_ROUNDING = 0.05


def matches(config: dict[str, Any], shapes: Shapes) -> bool:
    """True for the architecture's name, and for an injection's tensors under another name."""
    named = config.get("architectures") == ["DSpineDraftModel"]
    return (named or BIAS in shapes) and "fc.weight" in shapes and "format" not in config


def to_drafter_config(
    config: dict[str, Any], shapes: Shapes, where: Path, *, keep_embeddings: bool
) -> DSpineConfig:
    """The canonical configuration.

    Raises:
        InputError: a key is missing, or has a value that is not supported.
    """
    source = Source(config, shapes, where, NAME)
    values = dict(config) | source.nested("dflash_config") | source.nested("dspine_config")
    backbone = source.shape_of_backbone()
    source.layer_types(backbone["num_layers"])
    rank, message = (shapes.get(f"{name}.weight", (0,))[0] for name in (readout_name(0), MESSAGE))
    depth, top_k = values.get("num_target_layers"), values.get("top_k")
    return source.finish_as(
        DSpineConfig,
        **backbone,
        **source.taps(source.need("target_layer_ids", values)),
        **source.copies(keep_embeddings),
        **read_rope(source),
        causal=(True,) * backbone["num_layers"],
        target_num_layers=0 if depth is None else source.whole("num_target_layers", values),
        block_size=source.whole("block_size", values),
        logits_start=1,
        mask_token_id=source.need("mask_token_id", values),
        transfer_rank=source.stated("transfer_rank", values, rank),
        message_size=source.stated("message_size", values, message),
        top_k=_TOP_K if top_k is None else source.whole("top_k", values),
    )


def adapt(config: Mapping[str, Any], name: str, tensor: mx.array) -> mx.array:
    """The tensor, unchanged.

    Raises:
        InputError: codes were never made, as in a checkpoint without its file of codes.
    """
    if name == f"{CODES}.weight":
        lengths = tensor.astype(mx.float32).square().sum(axis=-1).sqrt()
        if (mx.abs(lengths - 1) > _ROUNDING).any().item():
            found = f"codes of lengths {lengths.min().item():.3g} to {lengths.max().item():.3g}"
            raise InputError(CODES, found, "codes of length 1, made of the target's head")
    return tensor
