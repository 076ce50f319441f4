"""The parts of a drafter's layer: K/V rows, queries, attention and MLP.

The canonical configuration chooses their variants; packagings and text are unknown here.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.activations import swiglu

from ..checkpoint.base_config import CanonicalConfig
from ..checkpoint.linear import Matrix
from .context_cache import BatchContextCache, ContextCache, TextCache
from .convolution import Convolution, convolved
from .rotary import make_rope


@dataclass(frozen=True)
class Layer:
    """Weights of one layer except its query, key and value projections.

    Attributes:
        input_norm: weight of the norm before the attention.
        query_norm: weight of the norm of each head's queries; None without.
        key_norm: weight of the norm of each head's keys; None without.
        output: the attention's output projection.
        mlp_norm: weight of the norm before the MLP.
        gate_up: the MLP's gate and up projections, concatenated.
        down: the MLP's down projection.
        attention_out_norm: weight of the norm after the attention; None without sandwich norms.
        mlp_out_norm: weight of the norm after the MLP; None without sandwich norms.
        scalar: factor of the layer's output, `[1]`; None for 1.
        attention_convolution, mlp_convolution: convolutions around the sublayers; None without.
        sinks: logit of each head's attention sink, `[heads]`; None without. A sink takes part in
            the softmax and has no value.
    """

    input_norm: mx.array
    query_norm: mx.array | None
    key_norm: mx.array | None
    output: Matrix
    mlp_norm: mx.array
    gate_up: Matrix
    down: Matrix
    attention_out_norm: mx.array | None = None
    mlp_out_norm: mx.array | None = None
    scalar: mx.array | None = None
    attention_convolution: Convolution | None = None
    mlp_convolution: Convolution | None = None
    sinks: mx.array | None = None


class LayerParts:
    """The functions of a layer, in the variants that a configuration asks for.

    Args:
        config: the canonical configuration.
    """

    def __init__(self, config: CanonicalConfig) -> None:
        self._config = config
        self._rope = make_rope(config)
        self._scale = config.attention_scale or config.head_dim**-0.5
        self._query_width = config.query_size // config.num_heads

    def embedded(self, x: mx.array, dtype: mx.Dtype) -> mx.array:
        """Embeddings cast to `dtype` and scaled as the configuration says, `[rows, hidden]`."""
        scale = self._config.embedding_scale
        x = x.astype(dtype)
        return x if scale == 1 else x * scale

    def keys_values(
        self, layer: Layer, kv: mx.array, start: int | mx.array
    ) -> tuple[mx.array, mx.array]:
        """Normed and rotated keys, and values, `[batch, kv heads, rows, head_dim]` each.

        Args:
            layer: the layer's weights.
            kv: projected keys and values, `[(batch,) rows, kv features]`.
            start: position of the first row; an array holds one for each element of the batch.
        """
        config, eps = self._config, self._config.rms_norm_eps
        shape = (-1, kv.shape[-2], config.num_kv_heads, config.head_dim)
        if config.values == "keys":
            keys = kv.reshape(shape)
            values = mx.fast.rms_norm(keys, None, eps)
        else:
            keys, values = (half.reshape(shape) for half in mx.split(kv, 2, axis=-1))
        keys = _normed(keys, layer.key_norm, eps)
        return self._rope(keys.transpose(0, 2, 1, 3), start), values.transpose(0, 2, 1, 3)

    def write(
        self, layer: Layer, cache: ContextCache | BatchContextCache | TextCache, kv: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Append K/V rows `[(batch,) rows, kv features]` to the cache; returns all its K and V."""
        return cache.update_and_fetch(*self.keys_values(layer, kv, cache.offset))

    def queries(
        self, layer: Layer, queries: mx.array, start: int | mx.array
    ) -> tuple[mx.array, mx.array | None]:
        """Normed and rotated queries, and their output gate.

        Args:
            layer: the layer's weights.
            queries: projected queries, `[(batch,) rows, query features]`.
            start: see `keys_values`.

        Returns:
            The queries `[batch, heads, rows, head_dim]`, and the gate before its sigmoid,
            `[batch, rows, heads, head_dim]`, or None for a drafter without gates.
        """
        config = self._config
        queries = queries.reshape(-1, queries.shape[-2], config.num_heads, self._query_width)
        gate = None
        if config.gated_queries:
            queries, gate = mx.split(queries, 2, axis=-1)
        queries = _normed(queries, layer.query_norm, config.rms_norm_eps)
        return self._rope(queries.transpose(0, 2, 1, 3), start), gate

    def attention(
        self,
        layer: Layer,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        mask: mx.array | None,
    ) -> mx.array:
        """Scaled dot-product attention, `[batch, heads, rows, head_dim]`."""
        return mx.fast.scaled_dot_product_attention(
            queries, keys, values, scale=self._scale, mask=mask, sinks=layer.sinks
        )

    def project(self, layer: Layer, attended: mx.array, gate: mx.array | None) -> mx.array:
        """The attention's gated and projected output, `[batch * rows, hidden]`.

        Args:
            layer: the layer's weights.
            attended: output of `attention`.
            gate: second result of `queries`.
        """
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
        start: int | mx.array,
        mask: mx.array | None,
    ) -> mx.array:
        """The attention sublayer's output before its residual, `[batch * rows, hidden]`.

        Args:
            layer: the layer's weights.
            queries: projected queries, `[(batch,) rows, query features]`.
            keys, values: as `write` returns them.
            start: position of the first query; an array holds one for each element of the batch.
            mask: bool `[rows, columns]`, of a batch `[batch, 1, rows, columns]`; None when every
                row attends to everything.
        """
        heads, gate = self.queries(layer, queries, start)
        return self.project(layer, self.attention(layer, heads, keys, values, mask), gate)

    def finish(self, layer: Layer, x: mx.array, attended: mx.array) -> mx.array:
        """The layer's output: residual `x` plus attention, then MLP; all are `[rows, hidden]`."""
        config, eps = self._config, self._config.rms_norm_eps
        x = x + _normed(attended, layer.attention_out_norm, eps)
        normed = mx.fast.rms_norm(x, layer.mlp_norm, eps)
        normed, outward = convolved(layer.mlp_convolution, normed)
        gate, up = mx.split(layer.gate_up(normed), 2, axis=-1)
        inner = swiglu(gate, up) if config.activation == "silu" else nn.gelu_approx(gate) * up
        x = x + _normed(outward(layer.down(inner)), layer.mlp_out_norm, eps)
        return x if layer.scalar is None else x * layer.scalar


def _normed(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
    return x if weight is None else mx.fast.rms_norm(x, weight, eps)
