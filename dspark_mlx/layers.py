"""One drafter layer's parts: its K/V rows, attention, and what follows it.

Built from small parts that the canonical configuration chooses; it knows no packaging and no text.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.activations import swiglu
from mlx_lm.models.cache import KVCache

from .canonical import CanonicalConfig
from .matrix import Matrix
from .rotary import make_rope


@dataclass(frozen=True)
class Layer:
    """Weights of one layer beside its query, key and value projections.

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


class LayerParts:
    """The arithmetic of a layer under a configuration's conventions.

    Args:
        config: the canonical configuration.
    """

    def __init__(self, config: CanonicalConfig) -> None:
        self._config = config
        self._rope = make_rope(config)
        self._scale = config.attention_scale or config.head_dim**-0.5

    def embedded(self, x: mx.array, dtype: mx.Dtype) -> mx.array:
        """Embeddings as the layers take them, `[rows, hidden]`."""
        scale = self._config.embedding_scale
        x = x.astype(dtype)
        return x if scale == 1 else x * scale

    def write(self, layer: Layer, cache: KVCache, kv: mx.array) -> tuple[mx.array, mx.array]:
        """Append K/V rows `[rows, kv features]` at the cache's end; returns all K and V."""
        config, eps = self._config, self._config.rms_norm_eps
        shape = (1, kv.shape[0], config.num_kv_heads, config.head_dim)
        if config.values == "keys":
            keys = kv.reshape(shape)
            values = mx.fast.rms_norm(keys, None, eps)
        else:
            keys, values = (half.reshape(shape) for half in mx.split(kv, 2, axis=-1))
        keys = mx.fast.rms_norm(keys, layer.key_norm, eps)
        keys = self._rope(keys.transpose(0, 2, 1, 3), cache.offset)
        return cache.update_and_fetch(keys, values.transpose(0, 2, 1, 3))

    def attend(
        self,
        layer: Layer,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        start: int,
        mask: mx.array | None,
    ) -> mx.array:
        """The attention's output projection, `[rows, hidden]`.

        Args:
            layer: whose weights.
            queries: projected, `[rows, query features]`, the first of them at position `start`.
            keys, values: as `write` returns them.
            mask: bool `[rows, columns]`; None where every row attends to everything.
        """
        config, rows = self._config, queries.shape[0]
        queries = queries.reshape(1, rows, config.num_heads, -1)
        gate = None
        if config.gated_queries:
            queries, gate = mx.split(queries, 2, axis=-1)
        queries = mx.fast.rms_norm(queries, layer.query_norm, config.rms_norm_eps)
        queries = self._rope(queries.transpose(0, 2, 1, 3), start)
        attended = mx.fast.scaled_dot_product_attention(
            queries, keys, values, scale=self._scale, mask=mask
        ).transpose(0, 2, 1, 3)
        if gate is not None:
            attended = attended * mx.sigmoid(gate)
        return layer.output(attended.reshape(rows, -1))

    def finish(self, layer: Layer, x: mx.array, attended: mx.array) -> mx.array:
        """The layer's output: what it adds to its residual `x`, MLP included, `[rows, hidden]`."""
        config, eps = self._config, self._config.rms_norm_eps
        x = x + _normed(attended, layer.attention_out_norm, eps)
        normed = mx.fast.rms_norm(x, layer.mlp_norm, eps)
        gate, up = mx.split(layer.gate_up(normed), 2, axis=-1)
        inner = swiglu(gate, up) if config.activation == "silu" else nn.gelu_approx(gate) * up
        x = x + _normed(layer.down(inner), layer.mlp_out_norm, eps)
        return x if layer.scalar is None else x * layer.scalar


def _normed(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
    return x if weight is None else mx.fast.rms_norm(x, weight, eps)
