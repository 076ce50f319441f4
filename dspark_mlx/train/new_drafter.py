"""A new drafter for a target: a configuration by the target's size, and first weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..checkpoint.base_config import MAX_BLOCK
from ..checkpoint.layout import stored_shapes
from ..drafters.dspark.config import DSparkConfig
from ..drafters.heads import NO_HEAD, head_names
from ..errors import InputError
from ..numbers import check_whole
from ..targets.tap import Target

DEVIATION = 0.02
"""Standard deviation of first weights (DeepSpec's initializer_range)."""
_HEAD, _WIDTH = 64, 3
"""Where a target's config says neither: size of a head, and the MLP's width by hidden size."""
_SMALL = 1024
"""Hidden size below which a target counts as small."""
_RANK, _MAX_LAYERS = 256, 64


@dataclass(frozen=True)
class DrafterDesign:
    """What to choose of a new drafter; None takes what fits the target's size.

    Attributes:
        head: sequential head, "vanilla", "gated", "rnn", or "none" for a DFlash drafter.
        layers: of the backbone.
        rank: of the sequential head.
        taps: how many, spread over the target's layers as DeepSpec does.
        block_size: tokens proposed a round.
        mask_token_id: id that fills a block's rows; one that texts do not contain.
    """

    head: str = "vanilla"
    layers: int | None = None
    rank: int | None = None
    taps: int = 5
    block_size: int = 7
    mask_token_id: int | None = None


def new_config(
    design: DrafterDesign,
    target: Target,
    config: Mapping[str, Any],
    name: str,
    mask: int,
    cap: float,
) -> DSparkConfig:
    """The canonical configuration of a new drafter.

    Args:
        design: what was chosen.
        target: the model it drafts for.
        config: the target's config.json.
        name: of the target, for messages.
        mask: the mask token where the design names none.
        cap: of the target's logits, 0 for none.

    Raises:
        InputError: a choice that the target cannot have, or a target whose config says sizes that
            are none.
    """
    if design.head not in head_names():
        raise InputError("--head", repr(design.head), f"one of {', '.join(head_names())}")
    # Larger ones learn nothing more, and only take memory.
    most = {
        "layers": _MAX_LAYERS,
        "rank": max(target.hidden_size, _RANK),
        "block_size": MAX_BLOCK,
    }
    check_whole("--taps", design.taps, 1)
    for option, limit in most.items():
        value = getattr(design, option)
        if value is not None:
            check_whole(f"--{option.replace('_', '-')}", value, 1, limit)
    small = target.hidden_size < _SMALL
    text = {**config, **(config.get("text_config") or {})}
    # A target without attention has no heads, and some name their width otherwise.
    heads = _size(text, "num_attention_heads", name, max(1, target.hidden_size // _HEAD))
    width = _size(text, "intermediate_size", name, _WIDTH * target.hidden_size)
    rank = 0 if design.head == NO_HEAD else design.rank or (64 if small else _RANK)
    chosen = DSparkConfig(
        hidden_size=target.hidden_size,
        intermediate_size=width,
        num_layers=design.layers or (3 if small else 5),
        num_heads=heads,
        num_kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or target.hidden_size // heads,
        rms_norm_eps=float(text.get("rms_norm_eps") or 1e-6),
        vocab_size=target.vocab_size,
        target_hidden_size=target.hidden_size,
        target_num_layers=target.num_layers,
        taps=spread_taps(target.num_layers, design.taps),
        block_size=design.block_size,
        logits_start=0,
        mask_token_id=mask if design.mask_token_id is None else design.mask_token_id,
        rope_theta=float(_rope_theta(text)),
        head=design.head,
        head_rank=rank,
        confidence="none" if design.head == NO_HEAD else "hidden+markov",
        owns_embedding=False,
        owns_head=False,
        target=name,
        softcap=cap,
    )
    return DSparkConfig.from_dict(chosen.to_dict(), "the new drafter")


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


def first_weights(config: DSparkConfig, seed: int) -> dict[str, mx.array]:
    """Normal matrices, norms of ones, biases of zeros; float32, by canonical name."""
    keys = iter(mx.random.split(mx.random.key(seed), len(stored_shapes(config))))
    tensors = {}
    for (name, shape), key in zip(stored_shapes(config).items(), keys, strict=True):
        if len(shape) == 2:
            tensors[name] = mx.random.normal(shape, scale=DEVIATION, key=key)
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
