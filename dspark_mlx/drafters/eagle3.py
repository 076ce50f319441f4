"""Eagle3's drafter: one layer that drafts a block token by token from the target's features.

A row joins the feature at position i with the embedding of the token at i + 1, and predicts the
token at i + 2; its rotary position is i. The first token of a block comes from the newest feature
and the anchor. For each later token, the target's feature does not exist yet, so the output of the
row before takes its place. A block's rows are removed after the draft: the rows of committed tokens
are written from the target's features.

The drafter has one layer, so a committed row's K/V depends on its feature and token alone, and
needs no attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx

from ..calibration.by_temperature import Calibrations
from ..calibration.sts import identity
from ..checkpoint.base_config import MAX_BLOCK, CanonicalConfig
from ..checkpoint.layer_shapes import layer_matrices, layer_vectors, shared_matrices
from ..checkpoint.linear import Matrix, arrays_of
from ..checkpoint.number_ranges import LARGEST, check_within
from ..sampling import Pick
from ..types import Draft
from .base import DrafterContext, Embed, Pending
from .block import BlockBuilder
from .context_cache import ContextCache
from .layers import Layer, LayerParts
from .tensors import DrafterTensors
from .vocabulary import DraftOutput


@dataclass(frozen=True, kw_only=True)
class Eagle3Config(CanonicalConfig):
    """An Eagle3 drafter: one layer, run once a token (DeepSpec's Eagle3 draft models).

    Attributes:
        steps: tokens proposed per round (DeepSpec's `ttt_length`).
        window: how many of the newest rows a row attends to, itself included; 0 for all.
    """

    METHOD: ClassVar[str] = "eagle3"
    EXAMPLE: ClassVar[dict[str, Any]] = {"steps": 4}
    PROPOSES: ClassVar[str] = "chains"

    steps: int
    window: int = 0

    @property
    def gamma(self) -> int:
        """Tokens proposed per round."""
        return self.steps

    @property
    def depth(self) -> int:
        """See `CanonicalConfig.depth`."""
        return 1

    @property
    def summary(self) -> str:
        """A description of the drafter in a few words."""
        return f"Eagle3, 1 layer, {self.steps} steps"

    def with_window(self, window: int) -> Eagle3Config:
        """See `CanonicalConfig.with_window`."""
        return replace(self, window=min(self.window or window, window))

    def _check(self, where: Path | str) -> None:
        check_within(where, "steps", self.steps, 1, MAX_BLOCK)
        check_within(where, "window", self.window, 0, LARGEST)
        super()._check(where)

    def matrix_shapes(self) -> dict[str, tuple[int, int]]:
        """See `CanonicalConfig.matrix_shapes`."""
        # The layer reads a token's embedding and a feature side by side.
        return shared_matrices(self) | layer_matrices(self, "layers.0", 2 * self.hidden_size)

    def vector_shapes(self) -> dict[str, tuple[int]]:
        """See `CanonicalConfig.vector_shapes`."""
        hidden = (self.hidden_size,)
        norms = {"norm.weight": hidden, "layers.0.hidden_norm.weight": hidden}
        return norms | layer_vectors(self, "layers.0")


@dataclass(frozen=True)
class Eagle3Weights:
    """The drafter's weights; matrices that are multiplied together are fused.

    Attributes:
        fc: projection of the concatenated taps, `[hidden, taps * target_hidden]`.
        feature_norm: weight of the norm of the feature, the second half of the layer's input.
        qkv: query, key and value rows, `[features, 2 * hidden]`; without value rows where the
            values are the keys.
        layer: the layer's other weights; its `input_norm` is the norm of the embedding, the first
            half of the layer's input.
        norm: weight of the final norm, `[hidden]`.
    """

    fc: Matrix
    feature_norm: mx.array
    qkv: Matrix
    layer: Layer
    norm: mx.array


class Eagle3Drafter:
    """An Eagle3 drafter that uses its target's embedding and head, see `base.Drafter`.

    The newest feature is joined with the anchor, which may not be known yet. So it stays pending in
    the context, and is in the cache only while a block is drafted.

    Args:
        config: the canonical configuration.
        weights: the fused weights.
        dtype: type of the arithmetic.
        embed: token ids `[n]` to embeddings `[n, hidden]`, normally the target's table.
        output: turns hidden rows into logits.
        calibrations: expected acceptance, which some schedulers start from; there is no confidence
            to calibrate. None starts them from `calibration.sts.identity`.
    """

    CONFIG: ClassVar[type[CanonicalConfig]] = Eagle3Config

    def __init__(
        self,
        config: Eagle3Config,
        weights: Eagle3Weights,
        dtype: mx.Dtype,
        embed: Embed,
        output: DraftOutput,
        calibrations: Calibrations | None = None,
    ) -> None:
        self.config = config
        self._weights = weights
        self._dtype = dtype
        self._embed = embed
        self._output = output
        self._parts = LayerParts(config)
        self._kv = weights.qkv.slice(config.query_size, weights.qkv.out_features)
        mx.eval(arrays_of(self._kv))
        self.calibrations = calibrations or Calibrations({0.0: identity(config.gamma)})

    @classmethod
    def load(
        cls,
        config: Eagle3Config,
        tensors: DrafterTensors,
        embed: Embed,
        output: DraftOutput,
        calibrations: Calibrations | None = None,
    ) -> Eagle3Drafter:
        """See `DraftingMethod.load`."""
        weights = Eagle3Weights(
            fc=tensors.matrix("fc"),
            feature_norm=tensors.vector("layers.0.hidden_norm.weight"),
            qkv=tensors.qkv("layers.0"),
            layer=tensors.layer("layers.0"),
            norm=tensors.vector("norm.weight"),
        )
        mx.eval(arrays_of(weights))
        return cls(config, weights, tensors.dtype, embed, output, calibrations)

    @property
    def vocabulary_size(self) -> int:
        """See `Drafter.vocabulary_size`."""
        return self._output.size or self.config.output_size

    def new_context(self, prompt: Iterable[int] = (), temperature: float = 0.0) -> DrafterContext:
        """See `Drafter.new_context`."""
        temperatures = mx.array(self.calibrations.at(temperature).temperatures)
        caches = [ContextCache(self.config.window)]
        return DrafterContext(caches, temperatures, self._output.vocabulary(prompt))

    def extend(
        self,
        context: DrafterContext,
        taps: Sequence[mx.array],
        tokens: mx.array,
        rows: int | None = None,
    ) -> None:
        """See `Drafter.extend`."""
        context.add(taps, tokens, rows)

    def flush(self, context: DrafterContext) -> None:
        """See `Drafter.flush`; the newest row stays pending, since its next token is not known."""
        pending = context.take()
        if pending is None:
            return
        features, tokens = pending
        if tokens.size > 1:
            rows = self._inputs(self._features(features[:-1]), tokens[1:])
            self._parts.write(self._weights.layer, context.caches[0], self._kv(rows))
            context.caches[0].drop_old()
        _keep_newest(context, features, tokens)

    def draft(self, context: DrafterContext, anchor: mx.array, pick: Pick) -> Draft:
        """See `Drafter.draft`; the context must hold a committed token's feature."""
        pending = context.take()
        assert pending is not None, "a draft needs the features of a committed token"
        features, tokens = pending
        _keep_newest(context, features, tokens)
        readout = self._output.readout(context.vocabulary)
        cache, gamma = context.caches[0], self.config.gamma
        cache.drop_old()
        state = self._step(cache, self._features(features), mx.concatenate([tokens[1:], anchor]))
        block = BlockBuilder(readout, pick)
        for slot in range(gamma):
            if slot:
                state = self._step(cache, state, block.tokens[-1])
            normed = mx.fast.rms_norm(state, self._weights.norm, self.config.rms_norm_eps)
            block.add(readout.logits(normed))
        # Removes the newest row and the gamma - 1 rows of the block after it.
        context.trim(gamma)
        return block.draft()

    def _features(self, taps: mx.array) -> mx.array:
        """Features `[rows, hidden]` from concatenated taps `[rows, taps * target_hidden]`."""
        return self._weights.fc(taps.astype(self._dtype))

    def _inputs(self, features: mx.array, tokens: mx.array) -> mx.array:
        """The attention's input, next token's embedding beside feature, `[rows, 2 * hidden]`."""
        weights, eps = self._weights, self.config.rms_norm_eps
        embedded = self._parts.embedded(self._embed(tokens), self._dtype)
        halves = [
            mx.fast.rms_norm(embedded, weights.layer.input_norm, eps),
            mx.fast.rms_norm(features, weights.feature_norm, eps),
        ]
        return mx.concatenate(halves, axis=-1)

    def _step(self, cache: ContextCache, features: mx.array, tokens: mx.array) -> mx.array:
        """Append rows to the cache and return the last row's output, `[1, hidden]`.

        Args:
            cache: K/V of all rows before.
            features: fused features, or the output of the row before, `[rows, hidden]`.
            tokens: the token after each feature, int `[rows]`.
        """
        layer = self._weights.layer
        projected = self._weights.qkv(self._inputs(features, tokens))
        queries, kv = mx.split(projected, [self.config.query_size], axis=-1)
        keys, values = self._parts.write(layer, cache, kv)
        if self.config.window:
            keys, values = (a[..., -self.config.window :, :] for a in (keys, values))
        # The last row attends to all of these, so it needs no mask.
        attended = self._parts.attend(layer, queries[-1:], keys, values, cache.offset - 1, None)
        return self._parts.finish(layer, features[-1:], attended)


def _keep_newest(context: DrafterContext, features: mx.array, tokens: mx.array) -> None:
    # A copy: a view would keep the memory of all rows before it.
    newest, token = mx.contiguous(features[-1:]), mx.contiguous(tokens[-1:])
    context.pending = [Pending((newest,), token, 1)]
