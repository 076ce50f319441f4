"""One drafter layer's parts: its K/V rows, attention, and what follows it.

Built from small parts that the canonical configuration chooses; it knows no packaging and no text.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.activations import swiglu
from mlx_lm.models.cache import KVCache

from ..checkpoint.base_config import CanonicalConfig
from ..checkpoint.linear import Matrix
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
        self._query_width = config.query_size // config.num_heads

    def embedded(self, x: mx.array, dtype: mx.Dtype) -> mx.array:
        """Embeddings as the layers take them, `[rows, hidden]`."""
        scale = self._config.embedding_scale
        x = x.astype(dtype)
        return x if scale == 1 else x * scale

    def keys_values(
        self, layer: Layer, kv: mx.array, start: int | mx.array
    ) -> tuple[mx.array, mx.array]:
        """Keys and values as attention takes them, `[batch, kv heads, rows, head_dim]` each.

        Args:
            layer: whose weights.
            kv: projected, `[(batch,) rows, kv features]`.
            start: position of the first row; one for each of the batch where it is an array.
        """
        config, eps = self._config, self._config.rms_norm_eps
        shape = (-1, kv.shape[-2], config.num_kv_heads, config.head_dim)
        if config.values == "keys":
            keys = kv.reshape(shape)
            values = mx.fast.rms_norm(keys, None, eps)
        else:
            keys, values = (half.reshape(shape) for half in mx.split(kv, 2, axis=-1))
        keys = mx.fast.rms_norm(keys, layer.key_norm, eps)
        return self._rope(keys.transpose(0, 2, 1, 3), start), values.transpose(0, 2, 1, 3)

    def write(self, layer: Layer, cache: KVCache, kv: mx.array) -> tuple[mx.array, mx.array]:
        """Append K/V rows `[rows, kv features]` at the cache's end; returns all K and V."""
        return cache.update_and_fetch(*self.keys_values(layer, kv, cache.offset))

    def queries(
        self, layer: Layer, queries: mx.array, start: int | mx.array
    ) -> tuple[mx.array, mx.array | None]:
        """Queries as attention takes them, `[batch, heads, rows, head_dim]`, and their gate.

        Args:
            layer: whose weights.
            queries: projected, `[(batch,) rows, query features]`.
            start: see `keys_values`.

        Returns:
            The queries, and what multiplies their outputs, `[batch, rows, heads, head_dim]`; None
            without a gate.
        """
        config = self._config
        queries = queries.reshape(-1, queries.shape[-2], config.num_heads, self._query_width)
        gate = None
        if config.gated_queries:
            queries, gate = mx.split(queries, 2, axis=-1)
        queries = mx.fast.rms_norm(queries, layer.query_norm, config.rms_norm_eps)
        return self._rope(queries.transpose(0, 2, 1, 3), start), gate

    def attention(
        self, queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None
    ) -> mx.array:
        """Scaled dot-product attention, `[batch, heads, rows, head_dim]`."""
        return mx.fast.scaled_dot_product_attention(
            queries, keys, values, scale=self._scale, mask=mask
        )

    def project(self, layer: Layer, attended: mx.array, gate: mx.array | None) -> mx.array:
        """The attention's output projection, `[batch * rows, hidden]`; see `queries`."""
        attended = attended.transpose(0, 2, 1, 3)
        if gate is not None:
            attended = attended * mx.sigmoid(gate)
        return layer.output(attended.reshape(-1, self._config.num_heads * self._config.head_dim))

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
        heads, gate = self.queries(layer, queries, start)
        return self.project(layer, self.attention(heads, keys, values, mask), gate)

    def finish(self, layer: Layer, x: mx.array, attended: mx.array) -> mx.array:
        """The layer's output: what it adds to its residual `x`, MLP included, shaped alike."""
        config, eps = self._config, self._config.rms_norm_eps
        x = x + _normed(attended, layer.attention_out_norm, eps)
        normed = mx.fast.rms_norm(x, layer.mlp_norm, eps)
        gate, up = mx.split(layer.gate_up(normed), 2, axis=-1)
        inner = swiglu(gate, up) if config.activation == "silu" else nn.gelu_approx(gate) * up
        x = x + _normed(layer.down(inner), layer.mlp_out_norm, eps)
        return x if layer.scalar is None else x * layer.scalar


def _normed(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
    return x if weight is None else mx.fast.rms_norm(x, weight, eps)
