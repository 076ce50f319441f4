"""A new drafter for a target: a configuration by the target's size, and first weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..checkpoint.base_config import MAX_BLOCK, CanonicalConfig
from ..checkpoint.layout import stored_shapes
from ..drafters.convolution import BASE
from ..drafters.dflash2.config import DFlash2Config
from ..drafters.dspark.config import BlockConfig, DSparkConfig
from ..drafters.eagle3.config import Eagle3Config
from ..drafters.heads import NO_HEAD, head_names
from ..drafters.methods import METHODS
from ..drafters.mtp.config import MTPConfig
from ..errors import InputError
from ..numbers import check_whole
from ..targets.tap import Target

DEVIATION = 0.02
"""Standard deviation of first weights (DeepSpec's initializer_range)."""
_HEAD, _WIDTH = 64, 3
"""Where a target's config says neither: size of a head, and the MLP's width by hidden size."""
_SMALL = 1024
"""Hidden size below which a target counts as small."""
_RANK, _MAX_LAYERS, _MAX_WIDTH = 256, 64, 64
_FAMILY = "mimo"
"""Module of mlx-lm with the layer of new prediction heads."""


_CONVOLUTION, _TOP_K = (2, 16), 16
"""Kernel and group size of DFlash 2's convolutions, and the selector's tokens (speculators')."""
_TAPS, _FEW_TAPS = 5, 3
"""Taps of drafters of blocks, and of Eagle3's."""


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


def new_config(
    design: DrafterDesign, target: Target, config: Mapping[str, Any], name: str, cap: float
) -> CanonicalConfig:
    """The canonical configuration of a new drafter.

    Args:
        design: what was chosen.
        target: the model it drafts for.
        config: the target's config.json.
        name: of the target, for messages.
        cap: of the target's logits, 0 for none.

    Raises:
        InputError: a choice that the method or the target cannot have, or a target whose config
            says sizes that are none.
    """
    _check(design, target)
    text = {**config, **(config.get("text_config") or {})}
    # A target without attention has no heads, and some name their width otherwise.
    heads = _size(text, "num_attention_heads", name, max(1, target.hidden_size // _HEAD))
    width = _size(text, "intermediate_size", name, _WIDTH * target.hidden_size)
    common: dict[str, Any] = {
        "hidden_size": target.hidden_size,
        "intermediate_size": design.intermediate_size or width,
        "num_heads": heads,
        "num_kv_heads": text.get("num_key_value_heads") or heads,
        "head_dim": text.get("head_dim") or target.hidden_size // heads,
        "rms_norm_eps": float(text.get("rms_norm_eps") or 1e-6),
        "vocab_size": target.vocab_size,
        "target_hidden_size": target.hidden_size,
        "target_num_layers": target.num_layers,
        "rope_theta": float(_rope_theta(text)),
        "owns_embedding": False,
        "owns_head": False,
        "target": name,
        "softcap": cap,
    }
    kind, own = METHODS[design.method].CONFIG, DESIGNS[design.method](design, common)
    return kind.from_dict(kind(**common, **own).to_dict(), "the new drafter")


def needs_mask(design: DrafterDesign) -> bool:
    """Whether drafters of the design's method read masked rows."""
    return issubclass(METHODS[design.method].CONFIG, BlockConfig)


def _check(design: DrafterDesign, target: Target) -> None:
    """Refuse choices that no drafter, or none of the method, can have.

    Raises:
        InputError: the first of them.
    """
    # Larger ones learn nothing more, and only take memory.
    most = {
        "layers": _MAX_LAYERS,
        "rank": max(target.hidden_size, _RANK),
        "intermediate_size": _MAX_WIDTH * target.hidden_size,
        "taps": target.num_layers,
        "block_size": MAX_BLOCK,
    }
    for option, limit in most.items():
        value = getattr(design, option)
        if value is not None:
            check_whole(_flag(option), value, 1, limit)
    unused = [option for option in _UNUSED[design.method] if getattr(design, option) is not None]
    if unused:
        names = ", ".join(map(_flag, unused))
        raise InputError("--method", f"{design.method} with {names}", "a method that has these")
    if design.head is not None and design.head not in head_names():
        raise InputError("--head", repr(design.head), f"one of {', '.join(head_names())}")


def _flag(option: str) -> str:
    """The command's flag for a field of a design."""
    return "--" + option.removesuffix("_id").replace("_", "-")


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
    arguments = {
        "model_type": _FAMILY,
        "hidden_size": common["hidden_size"],
        "num_hidden_layers": 1,
        "intermediate_size": common["intermediate_size"],
        "num_attention_heads": common["hidden_size"] // common["head_dim"],
        "num_key_value_heads": common["num_kv_heads"],
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

_UNUSED = {
    DSparkConfig.METHOD: (),
    DFlash2Config.METHOD: ("head",),
    Eagle3Config.METHOD: ("head", "layers", "rank", "mask_token_id"),
    MTPConfig.METHOD: ("head", "layers", "rank", "mask_token_id", "taps"),
}
"""By method: what of a design it does not have."""


def _is_small(common: Mapping[str, Any]) -> bool:
    return common["hidden_size"] < _SMALL


def _rank(design: DrafterDesign, common: Mapping[str, Any]) -> int:
    return design.rank or (64 if _is_small(common) else _RANK)


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


def first_weights(config: CanonicalConfig, seed: int) -> dict[str, mx.array]:
    """Normal matrices, norms of ones, biases of zeros, and convolutions that change nothing.

    They are float32, by canonical name.
    """
    shapes, matrices = stored_shapes(config), config.matrix_shapes()
    keys = iter(mx.random.split(mx.random.key(seed), len(shapes)))
    tensors = {}
    for (name, shape), key in zip(shapes.items(), keys, strict=True):
        if name.removesuffix(".weight") in matrices:
            tensors[name] = mx.random.normal(shape, scale=DEVIATION, key=key)
        elif name.endswith(BASE):
            own_row = mx.arange(shape[1])[:, None] == 0
            tensors[name] = mx.broadcast_to(own_row, shape).astype(mx.float32)
        else:
            tensors[name] = mx.zeros(shape) if name.endswith("bias") else mx.ones(shape)
    mx.eval(tensors)
    return tensors


def _size(text: Mapping[str, Any], key: str, name: str, otherwise: int) -> int:
    value = text.get(key)
    if value is None:
        return otherwise
    if isinstance(value, list) and value:
        value = value[0]
    if type(value) is not int:
        raise InputError(f"{name}: config.json", f"{key} {value!r}", "a whole number")
    return value


def _rope_theta(text: Mapping[str, Any]) -> float:
    parameters = text.get("rope_parameters") or {}
    theta = text.get("rope_theta") or parameters.get("rope_theta")
    return theta if isinstance(theta, int | float) else 10000.0
