"""A new drafter for a target: a configuration by the target's size, and first weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from ..checkpoint.base_config import MAX_BLOCK, CanonicalConfig
from ..checkpoint.layout import stored_shapes
from ..drafters.convolution import BASE
from ..drafters.dspark.config import BlockConfig
from ..drafters.heads import head_names
from ..drafters.methods import METHODS
from ..errors import InputError
from ..numbers import check_whole
from ..targets.tap import Target
from .designs import DESIGNS, RANK, UNUSED, DrafterDesign

DEVIATION = 0.02
"""Standard deviation of first weights (DeepSpec's initializer_range)."""
_HEAD, _WIDTH = 64, 3
"""Where a target's config says neither: size of a head, and the MLP's width by hidden size."""
_MAX_LAYERS, _MAX_WIDTH = 64, 64


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
        "rank": max(target.hidden_size, RANK),
        "intermediate_size": _MAX_WIDTH * target.hidden_size,
        "taps": target.num_layers,
        "block_size": MAX_BLOCK,
    }
    for option, limit in most.items():
        value = getattr(design, option)
        if value is not None:
            check_whole(_flag(option), value, 1, limit)
    unused = [option for option in UNUSED[design.method] if getattr(design, option) is not None]
    if unused:
        names = ", ".join(map(_flag, unused))
        raise InputError("--method", f"{design.method} with {names}", "a method that has these")
    if design.head is not None and design.head not in head_names():
        raise InputError("--head", repr(design.head), f"one of {', '.join(head_names())}")


def _flag(option: str) -> str:
    """The command's flag for a field of a design."""
    return "--" + option.removesuffix("_id").replace("_", "-")


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
