"""The rows of a target's own prediction head; its layers are mlx-lm's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn

from ...checkpoint.base_config import CanonicalConfig
from ...checkpoint.linear import Matrix
from ..base import Embed
from ..context_cache import ContextCache, TextCache
from ..tensors import DrafterTensors
from .block import build_model
from .config import BLOCK, TARGET_NORM, MTPConfig


@dataclass(frozen=True)
class MTPWeights:
    """The head's own weights.

    Attributes:
        fc: projection of an embedding beside a state, `[hidden, 2 * hidden]`.
        embedding_norm, hidden_norm: weights of the norms of its two inputs, `[hidden]`.
        norm: weight of the head's final norm, `[hidden]`.
        target_norm: weight of the target's final norm, `[hidden]`.
    """

    fc: Matrix
    embedding_norm: mx.array
    hidden_norm: mx.array
    norm: mx.array
    target_norm: mx.array


class MTPRows:
    """See `chain.ChainRows`.

    Args:
        config: the canonical configuration.
        weights: the head's own weights.
        layers: the head's layers, of which the first alone attends.
        dtype: type of the arithmetic.
        embed: token ids `[n]` to embeddings `[n, hidden]`.
    """

    def __init__(
        self,
        config: MTPConfig,
        weights: MTPWeights,
        layers: Sequence[nn.Module],
        dtype: mx.Dtype,
        embed: Embed,
    ) -> None:
        self._config = config
        self._dtype = dtype
        self._embed = embed
        self.weights = weights
        self.layers = layers

    @classmethod
    def load(cls, config: MTPConfig, tensors: DrafterTensors, embed: Embed) -> Self:
        """The rows of a canonical folder; nothing is evaluated."""
        names = ("embedding_norm", "hidden_norm", "norm", TARGET_NORM)
        norms = {name: tensors.vector(f"{name}.weight") for name in names}
        weights = MTPWeights(fc=tensors.matrix("fc"), **norms)
        model = build_model(config.family, config.arguments)
        # What mlx-lm keeps in its own type: a router's bias, which decides near-ties.
        cast = getattr(model, "cast_predicate", lambda name: "e_score_correction_bias" not in name)
        layers = load_layers(model.layers, config, tensors, cast)
        return cls(config, weights, layers, tensors.dtype, embed)

    def features(self, taps: mx.array) -> mx.array:
        """See `ChainRows`."""
        state = taps.astype(self._dtype)
        return self._norm(state, self.weights.target_norm) if self._normed_state else state

    def write(self, cache: ContextCache, features: mx.array, tokens: mx.array) -> None:
        """See `ChainRows`."""
        # Only keys and values are ever evaluated of what this builds.
        self._run(cache, features[None], tokens[None], None)

    def newest(self, cache: ContextCache, features: mx.array, tokens: mx.array) -> mx.array:
        """See `ChainRows`."""
        if features.shape[0] > 1:
            self.write(cache, features[:-1], tokens[:-1])
        return self._run(cache, features[None, -1:], tokens[None, -1:], None)[0]

    def outputs(
        self, cache: TextCache, features: mx.array, tokens: mx.array, mask: mx.array
    ) -> mx.array:
        """See `TextRows`."""
        return self._run(cache, features, tokens, mask)

    def readout_row(self, state: mx.array) -> mx.array:
        """See `ChainRows`."""
        return self._norm(state, self.weights.norm)

    def fed_back(self, state: mx.array, readout_row: mx.array) -> mx.array:
        """See `ChainRows`."""
        return readout_row if self._config.feedback == "normed" else state

    @property
    def _normed_state(self) -> bool:
        return self._config.state == "normed"

    def _norm(self, x: mx.array, weight: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, weight, self._config.rms_norm_eps)

    def _inputs(self, features: mx.array, tokens: mx.array) -> mx.array:
        """What the layers read: embedding and state, normed and projected, `[..., hidden]`."""
        embedded = self._embed(tokens).astype(self._dtype) * self._config.embedding_scale
        halves = [
            self._norm(embedded, self.weights.embedding_norm),
            self._norm(features, self.weights.hidden_norm),
        ]
        if self._config.order == "hidden":
            halves.reverse()
        return self.weights.fc(mx.concatenate(halves, axis=-1))

    def _run(
        self,
        cache: ContextCache | TextCache,
        features: mx.array,
        tokens: mx.array,
        mask: mx.array | None,
    ) -> mx.array:
        """The layers' output; without a mask, of rows that do not depend on one another."""
        x = self._inputs(features, tokens)
        for i, layer in enumerate(self.layers):
            x = layer(x, mask, cache) if i == 0 else layer(x, None, None)
        return x


def load_layers(
    layers: Sequence[nn.Module],
    config: CanonicalConfig,
    tensors: DrafterTensors,
    cast: Callable[[str], bool] = lambda name: True,
) -> Sequence[nn.Module]:
    """mlx-lm's layers with a folder's weights, in the types of `DrafterTensors`; not evaluated.

    Args:
        layers: filled in place.
        config, tensors: the folder's; the tensors of layer N begin with `block.N.`.
        cast: whether the tensor of a name has the arithmetic's type, or stays in its own.
    """
    shapes = config.matrix_shapes()
    for i, layer in enumerate(layers):
        prefix = f"{BLOCK}.{i}."
        matrices = {
            name.removeprefix(prefix): tensors.matrix(name)
            for name in shapes
            if name.startswith(prefix)
        }

        def settings(
            path: str, module: nn.Module, matrices: dict[str, Matrix] = matrices
        ) -> bool | dict[str, Any]:
            matrix = matrices.get(path)
            if matrix is None or not matrix.quantized:
                return False
            return {"bits": matrix.bits, "group_size": matrix.group_size}

        nn.quantize(layer, class_predicate=settings)
        weights = []
        for path, matrix in matrices.items():
            parts = {"weight": matrix.weight, "scales": matrix.scales, "biases": matrix.biases}
            weights += [(f"{path}.{part}", a) for part, a in parts.items() if a is not None]
        for name in config.vector_shapes():
            if name.startswith(prefix):
                kept = name.removeprefix(prefix)
                value = tensors.vector(name) if cast(name) else tensors.tensors[name]
                weights.append((kept, value))
        layer.load_weights(weights, strict=True)
    return layers
