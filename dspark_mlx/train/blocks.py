"""The backbone over whole texts: many blocks of a text at once, each with its own context.

Differs from `backbone.Backbone`, which drafts one block after a cache, in where keys come from: the
context's are computed once a text, and a mask gives each block the part before its anchor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mlx.core as mx

from ..config import Attention, DrafterConfig
from ..layer import after_attention, key_value_heads, query_heads
from ..matrix import Matrix
from ..parts import layer_qkv, layer_weights
from ..rotary import make_rope


@dataclass(frozen=True)
class TrainingBlocks:
    """What the backbone reads in a training step.

    Attributes:
        features: the concatenated taps of whole texts, `[batch, length, taps * target_hidden]`.
        anchors: their positions, int32 `[batch, anchors]`.
        embeddings: of the block's rows, the anchor's first, `[batch, anchors, rows, hidden]`.
    """

    features: mx.array
    anchors: mx.array
    embeddings: mx.array


def anchor_mask(
    kind: Attention, anchors: mx.array, length: int, rows: int
) -> mx.array:
    """Which columns [context, blocks] each block's rows attend to.

    Args:
        kind: of the layer, see `DrafterConfig.attention_of`.
        anchors: int32 `[batch, anchors]`.
        length: of the texts, that is the number of context columns.
        rows: of a block.

    Returns:
        bool `[batch, 1, anchors * rows, length + anchors * rows]`: the context before the row's
        anchor (its window of it), and the rows of its own block (not the later ones if causal).
    """
    batch, count = anchors.shape
    row = mx.tile(mx.arange(rows), count)
    block = mx.repeat(mx.arange(count), rows)
    anchor = mx.repeat(anchors, rows, axis=1)[..., None]
    column = mx.arange(length)
    context = column < anchor
    if kind.window:
        first = anchor - kind.window + (row[:, None] if kind.by_row else 0)
        context = context & (column >= first)
    own = block[:, None] == block[None]
    if kind.causal:
        own = own & (row[None] <= row[:, None])
    own = mx.broadcast_to(own, (batch, *own.shape))
    return mx.concatenate([context, own], axis=-1)[:, None]


def block_hidden(
    config: DrafterConfig,
    parameters: Mapping[str, mx.array],
    blocks: TrainingBlocks,
    *,
    checkpoint: bool = False,
) -> mx.array:
    """The blocks' rows after the final norm, `[batch, anchors, rows, hidden]`.

    Args:
        config: the canonical configuration.
        parameters: plain tensors by canonical name, see `layout`; their type is the arithmetic's.
        blocks: see `TrainingBlocks`.
        checkpoint: compute each layer again in the backward pass instead of keeping its insides.
    """
    eps = config.rms_norm_eps
    batch, count, rows, _ = blocks.embeddings.shape
    dtype, length = parameters["fc.weight"].dtype, blocks.features.shape[1]
    kinds = [config.attention_of(i) for i in range(config.num_layers)]
    masks = {kind: anchor_mask(kind, blocks.anchors, length, rows) for kind in set(kinds)}
    projected = blocks.features.astype(dtype) @ parameters["fc.weight"].T
    context = mx.fast.rms_norm(projected, parameters["hidden_norm.weight"], eps)
    x = blocks.embeddings.astype(dtype)
    if config.embedding_scale != 1:
        x = x * config.embedding_scale
    x = x.reshape(batch * count, rows, -1)
    for i, kind in enumerate(kinds):
        run = _layer_forward(config, i, blocks.anchors, masks[kind])
        # What it differentiates must be its argument: arrays in a closure count as constants.
        prefix = f"layers.{i}."
        own = {name: value for name, value in parameters.items() if name.startswith(prefix)}
        x = (mx.checkpoint(run) if checkpoint else run)(x, context, own)
    x = mx.fast.rms_norm(x, parameters["norm.weight"], eps)
    return x.reshape(batch, count, rows, -1)


def _layer_forward(
    config: DrafterConfig, index: int, anchors: mx.array, mask: mx.array
) -> Callable[[mx.array, mx.array, dict[str, mx.array]], mx.array]:
    rope = make_rope(config)
    query = config.num_heads * config.head_dim * (2 if config.gated_queries else 1)
    scale = config.attention_scale or config.head_dim**-0.5
    batch, count = anchors.shape
    positions = anchors.reshape(-1)

    def run(x: mx.array, context: mx.array, parameters: dict[str, mx.array]) -> mx.array:
        rows = x.shape[1]

        def matrix(name: str) -> Matrix:
            return Matrix(parameters[f"{name}.weight"])

        def by_text(heads: mx.array) -> mx.array:
            """`[batch * anchors, heads, rows, ...]` to `[batch, heads, anchors * rows, ...]`."""
            split = heads.reshape(batch, count, *heads.shape[1:]).transpose(0, 2, 1, 3, 4)
            return split.reshape(batch, heads.shape[1], count * rows, -1)

        qkv = layer_qkv(config, index, matrix, x.dtype)
        layer = layer_weights(config, index, matrix, parameters.__getitem__, x.dtype)
        normed = mx.fast.rms_norm(x, layer.input_norm, config.rms_norm_eps)
        queries, kv = mx.split(qkv(normed), [query], axis=-1)
        heads, gate = query_heads(config, layer, queries)
        own_keys, own_values = key_value_heads(config, layer, kv)
        context_kv = qkv.slice(query, qkv.out_features)(context)
        keys, values = key_value_heads(config, layer, context_kv)
        attended = mx.fast.scaled_dot_product_attention(
            by_text(rope(heads, positions)),
            mx.concatenate([rope(keys, 0), by_text(rope(own_keys, positions))], axis=2),
            mx.concatenate([values, by_text(own_values)], axis=2),
            scale=scale,
            mask=mask,
        )
        split = attended.reshape(batch, -1, count, rows, config.head_dim).transpose(0, 2, 1, 3, 4)
        attended = split.reshape(batch * count, -1, rows, config.head_dim)
        return after_attention(config, layer, x, attended, gate)

    return run
