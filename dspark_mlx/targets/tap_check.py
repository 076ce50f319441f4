"""Whether a model's logits are finite, and whether its taps change them."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..errors import InputError
from ..sampling import finite_rows
from .tap import Target

PROBE = mx.array([[0, 1, 2, 3, 5]])
"""A short text of token ids that every vocabulary has, int `[1, 5]`."""


def check_taps(model: nn.Module, target: Target, untapped: mx.array, where: object) -> None:
    """Refuse a model whose taps change its logits or do not have one row per token.

    Args:
        model: the target's model.
        target: the tapped target of this model.
        untapped: `probe_logits(model)` from before the model was tapped.
        where: names the model in errors.

    Raises:
        InputError: logits are not finite or differ in any bit, or a tap has another shape.
    """
    check_logits(untapped, where)
    with target.turns:
        logits = probe_logits(model)
        recorded = target._take()
    if not mx.array_equal(logits, untapped).item():
        raise InputError(where, "other logits when its layers are tapped", "equal logits")
    shape = (1, PROBE.size, target.hidden_size)
    for tap, value in zip(target._taps, recorded, strict=True):
        copies = value.shape[-1] // target.hidden_size if target._whole_copies else 1
        if value.shape != (*shape[:2], copies * target.hidden_size) or not copies:
            raise InputError(where, f"tap {tap} of shape {list(value.shape)}", f"{list(shape)}")


def probe_logits(model: nn.Module) -> mx.array:
    """Logits of `PROBE`, `[1, 5, vocabulary]`, computed without a cache."""
    return model(PROBE)


def check_logits(logits: mx.array, where: object) -> None:
    """Refuse a model with logits that no token can be chosen from.

    Args:
        logits: the model's `probe_logits`.
        where: names the model in errors.

    Raises:
        InputError: a row has NaN or +inf, or is all -inf.
    """
    if not finite_rows(logits).all().item():
        raise not_finite_error(where, "for a few fixed tokens")


def not_finite_error(where: object, tokens: str) -> InputError:
    """The error for a model whose logits are not finite; `tokens` says for which tokens."""
    found = f"logits that are not finite {tokens}"
    hint = "Weights may be damaged, or overflow in their precision; float32 holds more."
    return InputError(where, found, "finite numbers", hint)
