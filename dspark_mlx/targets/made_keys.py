"""The keys and values that a layer's attention makes, without a cache and without attending."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

KeyValues = tuple[mx.array, mx.array]


class _Written:
    """Takes the keys and values of one call, in a cache's place.

    Args:
        offset: position of the call's first row.

    Attributes:
        rows: what the call has written, each `[batch, heads, rows, size]`; None before it.
    """

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.rows: KeyValues | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> KeyValues:
        """Remember them; the call's rows see each other alone, which nobody reads."""
        self.rows = keys, values
        return keys, values


def made_keys(layer: nn.Module, entering: mx.array, start: int) -> KeyValues | None:
    """What a layer writes into its cache of rows; what it attends to is never evaluated.

    Args:
        layer: with `input_layernorm` and `self_attn`, as most of mlx-lm's families have them.
        entering: what enters it, `[batch, rows, hidden]`.
        start: position of the first row.

    Returns:
        Keys and values, each `[batch, heads, rows, size]`; None for a layer of another kind, and
        for one that shares the keys of a layer before it.
    """
    written = _Written(start)
    if "self_attn" not in layer or "input_layernorm" not in layer:
        return None
    # Gemma's shared layers raise without the keys that they share.
    if getattr(layer.self_attn, "has_kv", True):
        layer.self_attn(layer.input_layernorm(entering), mask=None, cache=written)
    return written.rows
