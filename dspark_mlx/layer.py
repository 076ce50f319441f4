"""One backbone layer's arithmetic, but for positions and for where its context comes from.

Inference attends to cached keys one block at a time, training to a whole text's keys for many
blocks at once; what a layer does to its rows is the same and stands here. Rows come as
`[rows, features]` or `[batch, rows, features]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.activations import swiglu

from .config import DrafterConfig
from .matrix import Matrix


@dataclass(frozen=True)
class Layer:
    """Weights of one backbone layer beside the stacked ones of `backbone.Weights`.

    Attributes:
        input_norm, query_norm, key_norm, mlp_norm: before what they are named for.
        output, gate_up, down: projections.
        attention_out_norm, mlp_out_norm: after the sublayers, of sandwich norms; else None.
        scalar: what the layer's output is multiplied by, `[1]`; None for 1.
    """

    input_norm: mx.array
    query_norm: mx.array
    key_norm: mx.array
    output: Matrix
    mlp_norm: mx.array
    gate_up: Matrix
    down: Matrix
    attention_out_norm: mx.array | None = None
    mlp_out_norm: mx.array | None = None
    scalar: mx.array | None = None


def query_heads(
    config: DrafterConfig, layer: Layer, queries: mx.array
) -> tuple[mx.array, mx.array | None]:
    """Queries before their rotation, `[batch, heads, rows, head_dim]`, and their output gate.

    Args:
        queries: projected rows, `[(batch,) rows, query features]`.

    Returns:
        The normed queries, and the gate `[batch, rows, heads, head_dim]`; None without one.
    """
    queries = queries.reshape(-1, queries.shape[-2], config.num_heads, _width(config))
    gate = None
    if config.gated_queries:
        queries, gate = mx.split(queries, 2, axis=-1)
    queries = mx.fast.rms_norm(queries, layer.query_norm, config.rms_norm_eps)
    return queries.transpose(0, 2, 1, 3), gate


def key_value_heads(config: DrafterConfig, layer: Layer, kv: mx.array) -> tuple[mx.array, mx.array]:
    """Keys before their rotation, and values, `[batch, kv heads, rows, head_dim]` each.

    Args:
        kv: projected rows, `[(batch,) rows, kv features]`.
    """
    eps = config.rms_norm_eps
    shape = (-1, kv.shape[-2], config.num_kv_heads, config.head_dim)
    if config.values == "keys":
        keys = kv.reshape(shape)
        values = mx.fast.rms_norm(keys, None, eps)
    else:
        keys, values = (half.reshape(shape) for half in mx.split(kv, 2, axis=-1))
    keys = mx.fast.rms_norm(keys, layer.key_norm, eps)
    return keys.transpose(0, 2, 1, 3), values.transpose(0, 2, 1, 3)


def after_attention(
    config: DrafterConfig, layer: Layer, x: mx.array, attended: mx.array, gate: mx.array | None
) -> mx.array:
    """The layer's output, shaped as `x`: output projection, residuals and the MLP.

    Args:
        x: the rows that entered the layer.
        attended: what attention gave, `[batch, heads, rows, head_dim]`.
        gate: see `query_heads`.
    """
    eps = config.rms_norm_eps
    attended = attended.transpose(0, 2, 1, 3)
    if gate is not None:
        attended = attended * mx.sigmoid(gate)
    attended = layer.output(attended.reshape(*x.shape[:-1], -1))
    x = x + _normed(attended, layer.attention_out_norm, eps)
    normed = mx.fast.rms_norm(x, layer.mlp_norm, eps)
    gate_rows, up = mx.split(layer.gate_up(normed), 2, axis=-1)
    silu = config.activation == "silu"
    inner = swiglu(gate_rows, up) if silu else nn.gelu_approx(gate_rows) * up
    x = x + _normed(layer.down(inner), layer.mlp_out_norm, eps)
    return x if layer.scalar is None else x * layer.scalar


def _width(config: DrafterConfig) -> int:
    return config.head_dim * (2 if config.gated_queries else 1)


def _normed(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
    return x if weight is None else mx.fast.rms_norm(x, weight, eps)
