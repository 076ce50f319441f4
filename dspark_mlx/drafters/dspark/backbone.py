"""The parallel backbone's forward over context K/V and a block's rows (paper, section 3.1.1).

The canonical configuration chooses its parts; packagings and text are unknown here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self, TypeAlias

import mlx.core as mx
import numpy as np

from ...checkpoint.linear import Matrix, alike, arrays_of
from ..context_cache import BatchContextCache, ContextCache
from ..convolution import convolved
from ..layers import Layer, LayerParts
from ..rotary import block_mask, block_masks
from ..tensors import DrafterTensors
from .config import BlockConfig

AfterLayer: TypeAlias = Callable[[int, mx.array], mx.array]
"""Changes the block's rows `[blocks * rows, hidden]` after the layer of an index."""


@dataclass(frozen=True)
class Weights:
    """The backbone's weights; matrices that are multiplied together are fused.

    Attributes:
        fc: projection of the concatenated taps, `[hidden, taps * target_hidden]`.
        context_norm: weight of the norm after `fc`, `[hidden]`.
        qkv: every layer's query, key and value rows, stacked, `[layers, features, hidden]`. Rows of
            a query gate are among the query rows; where the values are the keys, there are no
            value rows.
        layers: the other weights of each layer.
        norm: weight of the final norm, `[hidden]`.
        added: what is added to the embeddings of a block's rows, `[rows, hidden]`; None for
            nothing.
    """

    fc: Matrix
    context_norm: mx.array
    qkv: Matrix
    layers: tuple[Layer, ...]
    norm: mx.array
    added: mx.array | None = None

    @classmethod
    def load(cls, config: BlockConfig, tensors: DrafterTensors) -> Self:
        """The weights of a canonical folder; not evaluated."""
        names = [f"layers.{i}" for i in range(config.num_layers)]
        qkv = [tensors.qkv(name) for name in names]
        if not alike(qkv):
            qkv = [part.dequantized(tensors.dtype) for part in qkv]
        return cls(
            fc=tensors.matrix("fc"),
            context_norm=tensors.vector("hidden_norm.weight"),
            qkv=Matrix.stack(qkv),
            layers=tuple(tensors.layer(name) for name in names),
            norm=tensors.vector("norm.weight"),
        )


@dataclass(frozen=True)
class Ragged:
    """How many new context rows each request of a batch has; all of them lie behind each other.

    Attributes:
        counts: rows of each request.
    """

    counts: tuple[int, ...]

    def order(self, block: int) -> mx.array:
        """Indices of each request's context rows and then its block's, int `[requests, rows]`.

        They index all context rows followed by all blocks of `block` rows. What is behind a
        request's last row is index 0.
        """
        total, most = sum(self.counts), max(self.counts) + block
        order = np.zeros((len(self.counts), most), dtype=np.int32)
        start = 0
        for i, count in enumerate(self.counts):
            order[i, :count] = np.arange(start, start + count)
            order[i, count : count + block] = np.arange(block) + total + i * block
            start += count
        return mx.array(order)

    def unkept(self, block: int) -> list[int]:
        """How many rows of `order` are no context rows, of each request."""
        return [max(self.counts) + block - count for count in self.counts]


class Backbone:
    """The parallel backbone: all of a block's rows in one forward.

    Args:
        config: the canonical configuration.
        weights: the fused weights.
        dtype: type of the arithmetic.
    """

    def __init__(self, config: BlockConfig, weights: Weights, dtype: mx.Dtype) -> None:
        self._config = config
        self._weights = weights
        self._dtype = dtype
        self._parts = LayerParts(config)
        kv = weights.qkv.slice(config.query_size, weights.qkv.out_features)
        self._context_kv = _all_layers(kv)
        self._qkv = [weights.qkv[i] for i in range(config.num_layers)]
        mx.eval(arrays_of([self._context_kv, self._qkv]))
        self._kinds = [config.attention_of(i) for i in range(config.num_layers)]

    def context_rows(self, features: mx.array) -> list[mx.array]:
        """K/V rows made of tap features, one `[rows, kv features]` per layer.

        Args:
            features: the concatenated taps, `[rows, taps * target_hidden]`.
        """
        weights, eps = self._weights, self._config.rms_norm_eps
        projected = weights.fc(features.astype(self._dtype))
        rows = self._context_kv(mx.fast.rms_norm(projected, weights.context_norm, eps))
        if rows.ndim == 2:
            return list(mx.split(rows, self._config.num_layers, axis=-1))
        return [layer.squeeze(0) for layer in mx.split(rows, self._config.num_layers)]

    def extend(self, caches: Sequence[ContextCache], rows: Sequence[mx.array]) -> None:
        """Append rows from `context_rows` to the layers' caches."""
        for layer, cache, added in zip(self._weights.layers, caches, rows, strict=True):
            self._parts.write(layer, cache, added)
            cache.drop_old()

    def extend_each(
        self, caches: Sequence[BatchContextCache], rows: Sequence[mx.array], ragged: Ragged
    ) -> None:
        """As `extend` for a batch: each request's own rows to its own end."""
        order, unkept = ragged.order(0), ragged.unkept(0)
        for layer, cache, added in zip(self._weights.layers, caches, rows, strict=True):
            self._parts.write(layer, cache, added[order])
            cache.drop(unkept)
            cache.drop_old()

    def block(
        self,
        caches: Sequence[ContextCache],
        x: mx.array,
        added: Sequence[mx.array] | None,
        after: AfterLayer | None = None,
    ) -> mx.array:
        """The block's rows after the final norm, `[rows, hidden]`.

        Args:
            caches: the context's caches, one per layer. Afterwards they hold `added` too, but not
                the block's rows.
            x: the block's embeddings, `[rows, hidden]`.
            added: `context_rows` of features that are not in the caches yet; None without any.
            after: see `AfterLayer`; None leaves the rows as they are.
        """
        config, parts, rows = self._config, self._parts, x.shape[0]
        eps = config.rms_norm_eps
        x = self._inputs(x)
        start = caches[0].offset + (added[0].shape[0] if added else 0)
        for cache in caches:
            cache.drop_old()
        # Layers of one kind hold the same rows.
        held = {kind: c.start for kind, c in zip(self._kinds, caches, strict=True)}
        masks = {kind: block_mask(kind, start, rows, held[kind]) for kind in held}
        for i, layer in enumerate(self._weights.layers):
            normed = mx.fast.rms_norm(x, layer.input_norm, eps)
            normed, outward = convolved(layer.attention_convolution, normed)
            queries, kv = mx.split(self._qkv[i](normed), [config.query_size], axis=-1)
            if added is not None:
                kv = mx.concatenate([added[i], kv])
            keys, values = parts.write(layer, caches[i], kv)
            # The arrays keep the block's rows for this forward; the next write replaces them.
            caches[i].trim(rows)
            attended = parts.attend(layer, queries, keys, values, start, masks[self._kinds[i]])
            x = parts.finish(layer, x, outward(attended))
            x = x if after is None else after(i, x)
        return mx.fast.rms_norm(x, self._weights.norm, eps)

    def blocks(
        self,
        caches: Sequence[BatchContextCache],
        x: mx.array,
        added: Sequence[mx.array] | None,
        ragged: Ragged,
        after: AfterLayer | None = None,
    ) -> mx.array:
        """As `block` for a batch, `[requests, rows, hidden]`.

        Args:
            caches: the contexts' caches, joined, one per layer.
            x: the blocks' embeddings, `[requests, rows, hidden]`.
            added: `context_rows` of all requests' new features, one request behind the other; None
                without any.
            ragged: how many of them each request has.
            after: see `block`.
        """
        config, parts, eps = self._config, self._parts, self._config.rms_norm_eps
        requests, rows, _ = x.shape
        for cache in caches:
            cache.drop_old()
        counts = mx.array(ragged.counts, dtype=mx.int32)
        starts = caches[0].offset + counts
        # Layers of one kind hold the same rows.
        of_kind = dict(zip(self._kinds, caches, strict=True))
        masks = {
            kind: block_masks(
                kind, cache.held + counts, rows, cache.columns(max(ragged.counts) + rows)
            )
            for kind, cache in of_kind.items()
        }
        order, unkept = ragged.order(rows), ragged.unkept(rows)
        x = self._inputs(x).reshape(requests * rows, -1)
        for i, layer in enumerate(self._weights.layers):
            normed = mx.fast.rms_norm(x, layer.input_norm, eps)
            normed, outward = convolved(layer.attention_convolution, normed)
            queries, kv = mx.split(self._qkv[i](normed), [config.query_size], axis=-1)
            if added is not None:
                kv = mx.concatenate([added[i], kv])
            keys, values = parts.write(layer, caches[i], kv[order])
            caches[i].drop(unkept)
            queries = queries.reshape(requests, rows, -1)
            attended = parts.attend(layer, queries, keys, values, starts, masks[self._kinds[i]])
            x = parts.finish(layer, x, outward(attended))
            x = x if after is None else after(i, x)
        return mx.fast.rms_norm(x, self._weights.norm, eps).reshape(requests, rows, -1)

    def _inputs(self, embeddings: mx.array) -> mx.array:
        """What the first layer reads of a block's embeddings, `[(requests,) rows, hidden]`."""
        x, added = self._parts.embedded(embeddings, self._dtype), self._weights.added
        return x if added is None else x + added


def _all_layers(stack: Matrix) -> Matrix:
    """A matrix that gives the context K/V of all layers in one product.

    A plain stack is used as it is, without a copy. A quantised stack is concatenated, which copies
    it: MLX's CUDA backend has no product of many rows with a quantised stack.
    """
    if not stack.quantized:
        return stack
    return Matrix.concatenate([stack[i] for i in range(stack.weight.shape[0])])
