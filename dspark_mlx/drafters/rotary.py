"""The drafter's rotary embedding and the attention mask of a block."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
from mlx_lm.models.rope_utils import initialize_rope

from ..checkpoint.base_config import CanonicalConfig
from .dspark.config import Attention

Rope = Callable[[mx.array, int | mx.array], mx.array]
"""Rotates `[1, heads, rows, head_dim]`, given the first row's position."""


def make_rope(config: CanonicalConfig) -> Rope:
    """The rotary embedding of a configuration; scaled kinds use mlx-lm's implementation."""
    dims, theta = config.rope_dims or config.head_dim, config.rope_theta
    interleaved = config.rope_interleaved
    if config.rope_scaling:
        scaled = initialize_rope(dims, theta, interleaved, dict(config.rope_scaling))
        return lambda x, offset: scaled(x, offset=offset)

    def plain(x: mx.array, offset: int | mx.array) -> mx.array:
        return mx.fast.rope(x, dims, traditional=interleaved, base=theta, scale=1.0, offset=offset)

    return plain


def block_mask(kind: Attention, context: int, rows: int, start: int = 0) -> mx.array | None:
    """The attention mask of a block's rows over the columns [context, block].

    Args:
        kind: the layer's attention.
        context: number of committed rows before the anchor, which is the anchor's position.
        rows: rows of the block.
        start: position of the first column; what is before it is out of the window.

    Returns:
        bool `[rows, context - start + rows]`; None when every row attends to everything.
    """
    windowed = kind.window and context + (rows - 1 if kind.by_row else 0) > kind.window
    if not kind.causal and not windowed:
        return None
    columns = mx.arange(start, context + rows)[None]
    row = mx.arange(rows)[:, None]
    mask = mx.ones((rows, columns.size), dtype=mx.bool_)
    if windowed:
        # The first visible column, measured from the anchor or from each row's own position.
        first = context - kind.window + (row if kind.by_row else 0)
        mask = mask & ((columns >= first) | (columns >= context))
    if kind.causal:
        mask = mask & (columns <= context + row)
    return mask


def block_masks(kind: Attention, contexts: mx.array, rows: int, columns: int) -> mx.array:
    """`block_mask` of several requests, each with a context of its own length.

    Args:
        kind: the layer's attention.
        contexts: committed rows before each request's anchor, int `[requests]`.
        rows: rows of each block.
        columns: of the longest request's context and block.

    Returns:
        bool `[requests, 1, rows, columns]`.
    """
    column = mx.arange(columns)[None, None]
    row = mx.arange(rows)[None, :, None]
    context = contexts[:, None, None]
    mask = column < context + rows
    if kind.window:
        first = context - kind.window + (row if kind.by_row else 0)
        mask = mask & ((column >= first) | (column >= context))
    if kind.causal:
        mask = mask & (column <= context + row)
    return mx.broadcast_to(mask, (contexts.size, rows, columns))[:, None]
