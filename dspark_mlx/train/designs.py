"""How a new drafter of each method looks: the fields of its configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..drafters.dflash2.config import DFlash2Config
from ..drafters.dspark.config import DSparkConfig
from ..drafters.eagle3.config import Eagle3Config
from ..drafters.heads import NO_HEAD
from ..drafters.mtp.config import MTPConfig
from ..errors import InputError

RANK = 256
"""Rank of a head or a selector for a large target."""
_SMALL = 1024
"""Hidden size below which a target counts as small."""
_CONVOLUTION, _TOP_K = (2, 16), 16
"""Kernel and group size of DFlash 2's convolutions, and the selector's tokens (speculators')."""
_TAPS, _FEW_TAPS = 5, 3
"""Taps of drafters of blocks, and of Eagle3's."""
_FAMILY = "mimo"
"""Module of mlx-lm with the layer of new prediction heads."""


@dataclass(frozen=True)
class DrafterDesign:
    """What to choose of a new drafter; None takes what fits the method and the target's size.

    Attributes:
        method: a name of `DESIGNS`.
        head: DSpark's sequential head, "vanilla", "gated", "rnn", or "none" for a DFlash drafter.
        layers: of the backbone.
        rank: of the sequential head or the selector.
        intermediate_size: width of the MLPs; None for the target's.
        taps: how many, spread over the target's layers as DeepSpec does.
        block_size: tokens proposed a round.
        mask_token_id: id that fills a block's rows; one that texts do not contain.
    """

    method: str = DSparkConfig.METHOD
    head: str | None = None
    layers: int | None = None
    rank: int | None = None
    intermediate_size: int | None = None
    taps: int | None = None
    block_size: int = 7
    mask_token_id: int | None = None


def _blocks(design: DrafterDesign, common: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of drafters of whole blocks."""
    return {
        "num_layers": design.layers or (3 if _is_small(common) else 5),
        "taps": spread_taps(common["target_num_layers"], design.taps or _TAPS),
        "block_size": design.block_size,
        "logits_start": 0,
        "mask_token_id": design.mask_token_id,
    }


def _dspark(design: DrafterDesign, common: Mapping[str, Any]) -> dict[str, Any]:
    head = design.head or "vanilla"
    return _blocks(design, common) | {
        "head": head,
        "head_rank": 0 if head == NO_HEAD else _rank(design, common),
        "confidence": "none" if head == NO_HEAD else "hidden+markov",
    }


def _dflash2(design: DrafterDesign, common: Mapping[str, Any]) -> dict[str, Any]:
    kernel, group = _CONVOLUTION
    return _blocks(design, common) | {
        "conv_kernel_size": min(kernel, design.block_size),
        "conv_group_size": math.gcd(group, common["hidden_size"]),
        "selector_rank": _rank(design, common),
        "selector_top_k": min(_TOP_K, common["vocab_size"]),
    }


def _eagle3(design: DrafterDesign, common: Mapping[str, Any]) -> dict[str, Any]:
    taps = spread_taps(common["target_num_layers"], design.taps or _FEW_TAPS)
    return {"steps": design.block_size, "taps": taps}


def _mtp(design: DrafterDesign, common: Mapping[str, Any]) -> dict[str, Any]:
    """A head of a plain layer, whatever layers the target has.

    It reads the state before the target's final norm, which its own norm then takes the place of.
    """
    # This layer's heads share the hidden size, which those of the target need not.
    heads = max(1, common["hidden_size"] // common["head_dim"])
    arguments = {
        "model_type": _FAMILY,
        "hidden_size": common["hidden_size"],
        "num_hidden_layers": 1,
        "intermediate_size": common["intermediate_size"],
        "num_attention_heads": heads,
        "num_key_value_heads": math.gcd(heads, common["num_kv_heads"]),
        "rms_norm_eps": common["rms_norm_eps"],
        "rope_theta": common["rope_theta"],
        "vocab_size": 1,
    }
    return {
        "taps": (common["target_num_layers"] - 1,),
        "family": _FAMILY,
        "arguments": arguments,
        "steps": design.block_size,
        "state": "raw",
        "feedback": "raw",
        "order": "embedding",
    }


DESIGNS: dict[str, Callable[[DrafterDesign, Mapping[str, Any]], dict[str, Any]]] = {
    DSparkConfig.METHOD: _dspark,
    DFlash2Config.METHOD: _dflash2,
    Eagle3Config.METHOD: _eagle3,
    MTPConfig.METHOD: _mtp,
}
"""By method: the fields of a new drafter's configuration that are the method's own, from what was
chosen and the fields that all methods share."""

UNUSED = {
    DSparkConfig.METHOD: (),
    DFlash2Config.METHOD: ("head",),
    Eagle3Config.METHOD: ("head", "layers", "rank", "mask_token_id"),
    MTPConfig.METHOD: ("head", "layers", "rank", "mask_token_id", "taps"),
}
"""By method: what of a design it does not have."""


def _is_small(common: Mapping[str, Any]) -> bool:
    return common["hidden_size"] < _SMALL


def _rank(design: DrafterDesign, common: Mapping[str, Any]) -> int:
    return design.rank or (64 if _is_small(common) else RANK)


def spread_taps(depth: int, count: int) -> tuple[int, ...]:
    """Layers to tap, evenly from the second to the third from the end (DeepSpec's choice).

    Raises:
        InputError: more taps than layers.
    """
    if count > depth:
        raise InputError("--taps", count, f"at most the target's {depth} layers")
    first, last = (1, depth - 3) if depth - 3 >= count else (depth - count, depth - 1)
    steps = max(count - 1, 1)
    return tuple(first + (i * (last - first) + steps // 2) // steps for i in range(count))
