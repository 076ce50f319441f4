"""The drafter: parallel backbone, context cache, sequential head, confidence head -> Draft.

Knows token ids and arrays only; what loads, schedules or verifies stands elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
from mlx_lm.models.activations import swiglu
from mlx_lm.models.cache import KVCache

from .calibration import Calibration, identity
from .config import DrafterConfig
from .heads import SequentialHead
from .heads.confidence import ConfidenceHead
from .matrix import Matrix, arrays_of
from .sampling import Pick
from .types import Draft
from .vocabulary import DraftVocabulary, Readout


@dataclass(frozen=True)
class Layer:
    """Weights of one backbone layer beside the stacked ones of `Backbone`."""

    input_norm: mx.array
    query_norm: mx.array
    key_norm: mx.array
    output: Matrix
    post_norm: mx.array
    gate_up: Matrix
    down: Matrix


@dataclass(frozen=True)
class Backbone:
    """The parallel backbone's weights, fused as they are used.

    Attributes:
        fc: projection of the concatenated taps, `[hidden, taps * target_hidden]`.
        context_norm: norm after it.
        qkv: every layer's query, key and value rows, a stack `[layers, (q + 2 kv) * dim, hidden]`.
        layers: the rest of each layer.
        norm: the final norm.
    """

    fc: Matrix
    context_norm: mx.array
    qkv: Matrix
    layers: tuple[Layer, ...]
    norm: mx.array


@dataclass
class DrafterContext:
    """Tap features of the committed tokens before the anchor, as each layer's cached K/V.

    Features that arrived since the last draft wait in `pending`, so that one product projects them
    and one write per layer takes them and the block's rows together. `vocabulary` is the request's
    draft vocabulary, None for the whole one.
    """

    caches: list[KVCache]
    vocabulary: DraftVocabulary | None = None
    pending: list[mx.array] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Committed positions covered, the pending ones included."""
        return self.caches[0].offset + sum(rows.shape[0] for rows in self.pending)

    def commit(self, tokens: Iterable[int]) -> None:
        """Tell the draft vocabulary what was committed."""
        if self.vocabulary:
            self.vocabulary.commit(tokens)

    def arrays(self) -> list[mx.array]:
        """Everything it holds on the device."""
        kept = [a for c in self.caches if c.keys is not None for a in (c.keys, c.values)]
        return kept + self.pending


class Drafter:
    """A drafter bound to its target's embedding and head.

    Args:
        config: the canonical configuration.
        backbone: the fused weights.
        head: the sequential head; None for a DFlash drafter.
        confidence: the confidence head; None without one.
        embed: token ids `[n]` to embeddings `[n, hidden]`, normally the target's table.
        logits: hidden rows `[n, hidden]` to base logits `[n, vocabulary]`, normally the target's
            head.
        dtype: of the backbone's arithmetic.
        vocabulary: the output matrix and how many of its first rows drafts are cut down to; None
            reads out every row.
        calibration: of the confidence head; None takes it as it is.
    """

    def __init__(
        self,
        config: DrafterConfig,
        backbone: Backbone,
        head: SequentialHead | None,
        confidence: ConfidenceHead | None,
        embed: Callable[[mx.array], mx.array],
        logits: Callable[[mx.array], mx.array],
        dtype: mx.Dtype,
        vocabulary: tuple[Matrix, int] | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.config = config
        self._backbone = backbone
        self._readout = Readout(logits, head)
        self._confidence = confidence
        self._embed = embed
        self._vocabulary = vocabulary
        self.calibration = calibration or identity(config.gamma)
        self._temperatures = mx.array(self.calibration.temperatures)
        self._dtype = dtype
        query = config.num_heads * config.head_dim
        self._context_kv = _all_layers(backbone.qkv.slice(query, backbone.qkv.out_features))
        self._qkv = [backbone.qkv[i] for i in range(config.num_layers)]
        self._masks = mx.full((config.block_size - 1,), config.mask_token_id, dtype=mx.int32)
        self._scale = config.head_dim**-0.5

    @property
    def vocabulary_size(self) -> int:
        """Tokens that drafts are chosen from, before a request has shown any more."""
        return self._vocabulary[1] if self._vocabulary else self.config.vocab_size

    def new_context(self, prompt: Iterable[int] = ()) -> DrafterContext:
        """An empty context, for a request whose prompt has these tokens."""
        vocabulary = None
        if self._vocabulary:
            matrix, size = self._vocabulary
            vocabulary = DraftVocabulary(size, matrix, self._readout)
            vocabulary.add(prompt)
        caches = [KVCache() for _ in range(self.config.num_layers)]
        return DrafterContext(caches, vocabulary)

    def extend(self, context: DrafterContext, taps: Sequence[mx.array]) -> None:
        """Append committed tokens' features.

        Args:
            context: changed in place.
            taps: one `[rows, target_hidden]` per tap, in the configuration's order.
        """
        context.pending.append(mx.concatenate(list(taps), axis=-1))

    def flush(self, context: DrafterContext) -> None:
        """Move the pending features into the K/V cache now, as a long prefill does by chunk."""
        rows = self._take_pending(context)
        if rows is not None:
            for i, layer in enumerate(self._backbone.layers):
                self._write(layer, context.caches[i], rows[i])

    def draft(self, context: DrafterContext, anchor: mx.array, pick: Pick) -> Draft:
        """Propose a block after the anchor (paper section 3.1), nothing read back to the host.

        Args:
            context: holds every committed token before the anchor; its pending rows are taken in.
            anchor: the newest committed token, int `[1]`, at position `context.length`.
            pick: chooses the tokens, slot by slot.
        """
        hidden = self._block(context, anchor)[self.config.logits_start :]
        readout = context.vocabulary.readout() if context.vocabulary else self._readout
        base, gamma = readout.logits(hidden), self.config.gamma
        tokens: list[mx.array] = []
        columns, logits, weights, embeddings = [], [], [], []
        previous, state = anchor, None
        rows = zip(mx.split(base, gamma), mx.split(hidden, gamma), strict=True)
        for row, hidden_row in rows:
            if readout.head is not None:
                row, embedding, state = readout.head.step(row, previous, hidden_row, state)
                embeddings.append(embedding)
            column, weight = pick(row, readout.ids, tokens)
            previous = readout.tokens(column)
            tokens.append(previous)
            columns.append(column)
            logits.append(row)
            if weight is not None:
                weights.append(weight)
        odds = confidence = None
        if self._confidence is not None:
            odds = self._confidence(hidden, mx.concatenate(embeddings) if embeddings else None)
            confidence = mx.sigmoid(odds / self._temperatures)
        return Draft(
            mx.concatenate(tokens),
            mx.concatenate(logits),
            odds,
            confidence,
            hidden,
            base,
            readout.ids,
            mx.concatenate(columns),
            mx.concatenate(weights) if weights else None,
        )

    def _block(self, context: DrafterContext, anchor: mx.array) -> mx.array:
        config, backbone = self.config, self._backbone
        eps, rows = config.rms_norm_eps, config.block_size
        query_features = config.num_heads * config.head_dim
        start = context.length
        added = self._take_pending(context)
        x = self._embed(mx.concatenate([anchor, self._masks])).astype(self._dtype)
        for i, layer in enumerate(backbone.layers):
            normed = mx.fast.rms_norm(x, layer.input_norm, eps)
            queries, kv = mx.split(self._qkv[i](normed), [query_features], axis=-1)
            if added is not None:
                kv = mx.concatenate([added[i], kv])
            cache = context.caches[i]
            keys, values = self._write(layer, cache, kv)
            # The block's rows stay for this forward only; the next write goes over them.
            cache.trim(rows)
            queries = queries.reshape(1, rows, config.num_heads, config.head_dim)
            queries = mx.fast.rms_norm(queries, layer.query_norm, eps).transpose(0, 2, 1, 3)
            attended = mx.fast.scaled_dot_product_attention(
                self._rope(queries, start), keys, values, scale=self._scale
            )
            x = x + layer.output(attended.transpose(0, 2, 1, 3).reshape(rows, query_features))
            normed = mx.fast.rms_norm(x, layer.post_norm, eps)
            gate, up = mx.split(layer.gate_up(normed), 2, axis=-1)
            x = x + layer.down(swiglu(gate, up))
        return mx.fast.rms_norm(x, backbone.norm, eps)

    def _write(self, layer: Layer, cache: KVCache, kv: mx.array) -> tuple[mx.array, mx.array]:
        """Append K/V rows `[rows, 2 * kv features]` at the cache's end; returns all K and V."""
        shape = (1, kv.shape[0], self.config.num_kv_heads, self.config.head_dim)
        keys, values = mx.split(kv, 2, axis=-1)
        keys = mx.fast.rms_norm(keys.reshape(shape), layer.key_norm, self.config.rms_norm_eps)
        keys = self._rope(keys.transpose(0, 2, 1, 3), cache.offset)
        return cache.update_and_fetch(keys, values.reshape(shape).transpose(0, 2, 1, 3))

    def _rope(self, x: mx.array, offset: int) -> mx.array:
        dims, theta = self.config.head_dim, self.config.rope_theta
        return mx.fast.rope(x, dims, traditional=False, base=theta, scale=1.0, offset=offset)

    def _take_pending(self, context: DrafterContext) -> list[mx.array] | None:
        """K/V of all layers for the pending features, `[rows, 2 * kv features]` a layer."""
        if not context.pending:
            return None
        pending, context.pending = context.pending, []
        features = pending[0] if len(pending) == 1 else mx.concatenate(pending)
        projected = self._backbone.fc(features.astype(self._dtype))
        eps = self.config.rms_norm_eps
        rows = self._context_kv(mx.fast.rms_norm(projected, self._backbone.context_norm, eps))
        if rows.ndim == 2:
            return list(mx.split(rows, self.config.num_layers, axis=-1))
        return [layer.squeeze(0) for layer in mx.split(rows, self.config.num_layers)]


def _all_layers(stack: Matrix) -> Matrix:
    """One product for the context K/V of all layers: the stack's own memory, as a view.

    Quantised stacks are laid side by side instead, a small copy: MLX's CUDA backend has no product
    of many rows with a quantised stack.
    """
    if not stack.quantised:
        return stack
    flat = Matrix.concatenate([stack[i] for i in range(stack.weight.shape[0])])
    mx.eval(arrays_of(flat))
    return flat
