"""Runs the backbone over whole texts: many blocks of a text at once, each with its own context.

`backbone.Backbone` drafts a single block after a cache. Here the context's keys are computed once
for each text, and a mask lets each block attend to those before its anchor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from ...drafters.convolution import convolved
from ...drafters.dspark.config import Attention, BlockConfig
from ...drafters.layers import LayerParts
from ...drafters.tensors import DrafterTensors


@dataclass(frozen=True)
class TrainingBlocks:
    """The backbone's inputs in a training step.

    Attributes:
        features: concatenated taps of whole texts, `[batch, length, taps * target_hidden]`.
        anchors: positions of the blocks' anchors, int32 `[batch, anchors]`.
        embeddings: embeddings of the blocks' rows, `[batch, anchors, rows, hidden]`; the anchor's
            row is the first.
    """

    features: mx.array
    anchors: mx.array
    embeddings: mx.array


def anchor_mask(kind: Attention, anchors: mx.array, length: int, rows: int) -> mx.array:
    """The mask of the blocks' attention to the columns [context, blocks].

    Args:
        kind: attention of the layer, see `BlockConfig.attention_of`.
        anchors: positions of the anchors, int32 `[batch, anchors]`.
        length: length of the texts, which is the number of context columns.
        rows: rows of a block.

    Returns:
        Bool `[batch, 1, anchors * rows, length + anchors * rows]`. A row attends to the context
        before its anchor, within the layer's window, and to the rows of its own block; if causal,
        not to later ones.
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
    stored: DrafterTensors,
    config: BlockConfig,
    blocks: TrainingBlocks,
    *,
    checkpoint: bool = False,
) -> mx.array:
    """The hidden states of the blocks after the final norm, `[batch, anchors, rows, hidden]`.

    Args:
        stored: the drafter's plain tensors, in the type to compute in.
        config: the same as `stored.config`.
        blocks: see `TrainingBlocks`.
        checkpoint: whether to save memory by computing each layer again in the backward pass.
    """
    eps, parts = config.rms_norm_eps, LayerParts(config)
    batch, count, rows, _ = blocks.embeddings.shape
    length = blocks.features.shape[1]
    kinds = [config.attention_of(i) for i in range(config.num_layers)]
    masks = {kind: anchor_mask(kind, blocks.anchors, length, rows) for kind in set(kinds)}
    projected = stored.matrix("fc")(blocks.features.astype(stored.dtype))
    context = mx.fast.rms_norm(projected, stored.vector("hidden_norm.weight"), eps)
    x = parts.embedded(blocks.embeddings, stored.dtype).reshape(batch * count, rows, -1)
    for i, kind in enumerate(kinds):
        name = f"layers.{i}"
        run = _layer_forward(stored, config, parts, name, blocks.anchors, masks[kind])
        # The layer's tensors are an argument: MLX treats arrays in a closure as constants, which
        # get no gradient.
        own = {n: v for n, v in stored.tensors.items() if n.startswith(f"{name}.")}
        x = (mx.checkpoint(run) if checkpoint else run)(x, context, own)
    x = mx.fast.rms_norm(x, stored.vector("norm.weight"), eps)
    return x.reshape(batch, count, rows, -1)


def _layer_forward(
    stored: DrafterTensors,
    config: BlockConfig,
    parts: LayerParts,
    name: str,
    anchors: mx.array,
    mask: mx.array,
) -> Callable[[mx.array, mx.array, dict[str, mx.array]], mx.array]:
    batch, count = anchors.shape
    positions = anchors.reshape(-1)

    def by_text(heads: mx.array) -> mx.array:
        """`[batch * anchors, heads, rows, ...]` to `[batch, heads, anchors * rows, ...]`."""
        split = heads.reshape(batch, count, *heads.shape[1:]).transpose(0, 2, 1, 3, 4)
        return split.reshape(batch, heads.shape[1], -1, config.head_dim)

    def by_block(heads: mx.array) -> mx.array:
        """`[batch, heads, anchors * rows, ...]` to `[batch * anchors, heads, rows, ...]`."""
        split = heads.reshape(batch, heads.shape[1], count, -1, config.head_dim)
        split = split.transpose(0, 2, 1, 3, 4)
        return split.reshape(batch * count, *split.shape[2:])

    def run(x: mx.array, context: mx.array, tensors: dict[str, mx.array]) -> mx.array:
        own = dataclasses.replace(stored, tensors=tensors)
        layer, qkv = own.layer(name), own.qkv(name)
        normed = mx.fast.rms_norm(x, layer.input_norm, config.rms_norm_eps)
        normed, outward = convolved(layer.attention_convolution, normed)
        queries, kv = mx.split(qkv(normed), [config.query_size], axis=-1)
        heads, gate = parts.queries(layer, queries, positions)
        own_keys, own_values = parts.keys_values(layer, kv, positions)
        context_kv = qkv.slice(config.query_size, qkv.out_features)(context)
        keys, values = parts.keys_values(layer, context_kv, 0)
        attended = parts.attention(
            layer,
            by_text(heads),
            mx.concatenate([keys, by_text(own_keys)], axis=2),
            mx.concatenate([values, by_text(own_values)], axis=2),
            mask,
        )
        projected = parts.project(layer, by_block(attended), gate).reshape(x.shape)
        return parts.finish(layer, x, outward(projected))

    return run
