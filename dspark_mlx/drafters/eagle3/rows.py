"""Eagle3's rows: an embedding beside a feature through one layer.

A row's rotary position is that of the feature. See `chain` for the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import mlx.core as mx

from ...checkpoint.linear import Matrix
from ..base import Embed
from ..context_cache import ContextCache, TextCache
from ..layers import Layer, LayerParts
from ..tensors import DrafterTensors
from .config import INPUT_NORM, Eagle3Config, tap_norm


@dataclass(frozen=True)
class Eagle3Weights:
    """The drafter's weights; matrices that are multiplied together are fused.

    Attributes:
        fc: projection of the concatenated taps, `[hidden, taps * target_hidden]`.
        tap_norms: weights of the norms before it: one a tap, one of all, or none.
        feature_norm: weight of the norm of the feature, the second half of the layer's input.
        qkv: query, key and value rows, `[features, 2 * hidden]`; without value rows where the
            values are the keys.
        layer: the layer's other weights; its `input_norm` is the norm of the embedding, the first
            half of the layer's input.
        norm: weight of the final norm, `[hidden]`.
    """

    fc: Matrix
    tap_norms: tuple[mx.array, ...]
    feature_norm: mx.array
    qkv: Matrix
    layer: Layer
    norm: mx.array

    @classmethod
    def load(cls, config: Eagle3Config, tensors: DrafterTensors) -> Self:
        """The weights of a canonical folder; not evaluated."""
        return cls(
            fc=tensors.matrix("fc"),
            tap_norms=_tap_norms(config, tensors),
            feature_norm=tensors.vector("layers.0.hidden_norm.weight"),
            qkv=tensors.qkv("layers.0"),
            layer=tensors.layer("layers.0"),
            norm=tensors.vector("norm.weight"),
        )


class Eagle3Rows:
    """See `chain.ChainRows`.

    Args:
        config: the canonical configuration.
        weights: the fused weights.
        dtype: type of the arithmetic.
        embed: token ids `[n]` to embeddings `[n, hidden]`.

    Attributes:
        weights: see `Eagle3Weights`. parts: the layer's functions.
        kv: the key and value rows of the layer's projection.
    """

    def __init__(
        self, config: Eagle3Config, weights: Eagle3Weights, dtype: mx.Dtype, embed: Embed
    ) -> None:
        self._config = config
        self.weights = weights
        self._dtype = dtype
        self._embed = embed
        self.parts = LayerParts(config)
        self.kv = weights.qkv.slice(config.query_size, weights.qkv.out_features)

    @classmethod
    def load(cls, config: Eagle3Config, tensors: DrafterTensors, embed: Embed) -> Self:
        """The rows of a canonical folder; nothing is evaluated."""
        return cls(config, Eagle3Weights.load(config, tensors), tensors.dtype, embed)

    def features(self, taps: mx.array) -> mx.array:
        """See `ChainRows`."""
        taps, norms = taps.astype(self._dtype), self.weights.tap_norms
        if norms:
            parts = zip(mx.split(taps, len(norms), axis=-1), norms, strict=True)
            taps = mx.concatenate([self.norm(tap, weight) for tap, weight in parts], axis=-1)
        return self.weights.fc(taps)

    def write(self, cache: ContextCache, features: mx.array, tokens: mx.array) -> None:
        """See `ChainRows`."""
        self.parts.write(self.weights.layer, cache, self.kv(self.inputs(features, tokens)))

    def newest(self, cache: ContextCache, features: mx.array, tokens: mx.array) -> mx.array:
        """See `ChainRows`."""
        queries, keys, values = self._project(cache, features, tokens)
        if window := self._config.window:
            keys, values = (a[..., -window:, :] for a in (keys, values))
        # The last row attends to all of these, so it needs no mask.
        attended = self.parts.attend(
            self.weights.layer, queries[-1:], keys, values, cache.offset - 1, None
        )
        return self._finish(features[-1:], attended)

    def outputs(
        self, cache: TextCache, features: mx.array, tokens: mx.array, mask: mx.array
    ) -> mx.array:
        """See `TextRows`."""
        queries, keys, values = self._project(cache, features, tokens)
        attended = self.parts.attend(self.weights.layer, queries, keys, values, cache.offset, mask)
        return self._finish(features, attended.reshape(features.shape))

    def readout_row(self, state: mx.array) -> mx.array:
        """See `ChainRows`."""
        return self.norm(state, self.weights.norm)

    def fed_back(self, state: mx.array, readout_row: mx.array) -> mx.array:
        """See `ChainRows`."""
        return readout_row if self._config.feedback == "normed" else state

    def norm(self, x: mx.array, weight: mx.array) -> mx.array:
        """RMS norm with the configuration's epsilon."""
        return mx.fast.rms_norm(x, weight, self._config.rms_norm_eps)

    def inputs(self, features: mx.array, tokens: mx.array) -> mx.array:
        """The attention's input, next token's embedding beside feature, `[..., 2 * hidden]`."""
        weights = self.weights
        embedded = self.parts.embedded(self._embed(tokens), self._dtype)
        normed = self.norm(features, weights.feature_norm)
        return mx.concatenate([self.norm(embedded, weights.layer.input_norm), normed], axis=-1)

    def _project(
        self, cache: ContextCache | TextCache, features: mx.array, tokens: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Projected queries of rows, and all keys and values with theirs."""
        projected = self.weights.qkv(self.inputs(features, tokens))
        queries, kv = mx.split(projected, [self._config.query_size], axis=-1)
        return queries, *self.parts.write(self.weights.layer, cache, kv)

    def _finish(self, features: mx.array, attended: mx.array) -> mx.array:
        return self.parts.finish(self.weights.layer, self.residual(features), attended)

    def residual(self, features: mx.array) -> mx.array:
        """What is added to the attention's output."""
        normed = self._config.residual == "normed"
        return self.norm(features, self.weights.feature_norm) if normed else features


def _tap_norms(config: Eagle3Config, tensors: DrafterTensors) -> tuple[mx.array, ...]:
    if config.tap_norms == "each":
        return tuple(tensors.vector(tap_norm(i)) for i in range(len(config.taps)))
    return (tensors.vector(INPUT_NORM),) if config.tap_norms == "all" else ()
