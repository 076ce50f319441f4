"""The drafter made of a target's own prediction head; its layers are mlx-lm's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from ...calibration.by_temperature import Calibrations
from ...checkpoint.base_config import CanonicalConfig
from ...checkpoint.linear import Matrix, arrays_of
from ..base import Embed
from ..chain import ChainDrafter
from ..context_cache import ContextCache
from ..tensors import DrafterTensors
from ..vocabulary import DraftOutput
from .block import build_model
from .config import BLOCK, MTPConfig


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


class MTPDrafter(ChainDrafter):
    """A target's prediction head, see `base.Drafter`.

    Args:
        config: the canonical configuration.
        weights: the head's own weights.
        layers: the head's layers, of which the first alone attends.
        dtype: type of the arithmetic.
        embed, output, calibrations: see `ChainDrafter`.
    """

    CONFIG: ClassVar[type[CanonicalConfig]] = MTPConfig

    def __init__(
        self,
        config: MTPConfig,
        weights: MTPWeights,
        layers: Sequence[nn.Module],
        dtype: mx.Dtype,
        embed: Embed,
        output: DraftOutput,
        calibrations: Calibrations | None = None,
    ) -> None:
        super().__init__(config, 0, embed, output, calibrations)
        self._head = config
        self._weights = weights
        self._layers = layers
        self._dtype = dtype

    @classmethod
    def load(
        cls,
        config: MTPConfig,
        tensors: DrafterTensors,
        embed: Embed,
        output: DraftOutput,
        calibrations: Calibrations | None = None,
    ) -> MTPDrafter:
        """See `DraftingMethod.load`."""
        names = ("embedding_norm", "hidden_norm", "norm", "target_norm")
        norms = {name: tensors.vector(f"{name}.weight") for name in names}
        weights = MTPWeights(fc=tensors.matrix("fc"), **norms)
        layers = _load_layers(config, tensors)
        mx.eval(arrays_of(weights), [layer.parameters() for layer in layers])
        return cls(config, weights, layers, tensors.dtype, embed, output, calibrations)

    def _features(self, taps: mx.array) -> mx.array:
        """See `ChainDrafter`."""
        state = taps.astype(self._dtype)
        return self._norm(state, self._weights.target_norm) if self._normed_state else state

    @property
    def _normed_state(self) -> bool:
        return self._head.state == "normed"

    def _norm(self, x: mx.array, weight: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, weight, self.config.rms_norm_eps)

    def _inputs(self, features: mx.array, tokens: mx.array) -> mx.array:
        """What the layers read: embedding and state, normed and projected, `[rows, hidden]`."""
        embedded = self._embed(tokens).astype(self._dtype) * self.config.embedding_scale
        halves = [
            self._norm(embedded, self._weights.embedding_norm),
            self._norm(features, self._weights.hidden_norm),
        ]
        if self._head.order == "hidden":
            halves.reverse()
        return self._weights.fc(mx.concatenate(halves, axis=-1))

    def _run(self, cache: ContextCache, features: mx.array, tokens: mx.array) -> mx.array:
        """The layers' output for rows whose outputs do not depend on one another."""
        x = self._inputs(features, tokens)[None]
        for i, layer in enumerate(self._layers):
            x = layer(x, None, cache if i == 0 else None)
        return x[0]

    def _write(self, cache: ContextCache, features: mx.array, tokens: mx.array) -> None:
        """See `ChainDrafter`."""
        # Only keys and values are ever evaluated of what this builds.
        self._run(cache, features, tokens)

    def _step(self, cache: ContextCache, features: mx.array, tokens: mx.array) -> mx.array:
        """See `ChainDrafter`."""
        if features.shape[0] > 1:
            self._write(cache, features[:-1], tokens[:-1])
        return self._run(cache, features[-1:], tokens[-1:])

    def _readout_row(self, state: mx.array) -> mx.array:
        """See `ChainDrafter`."""
        return self._norm(state, self._weights.norm)

    def _fed_back(self, state: mx.array, readout_row: mx.array) -> mx.array:
        """See `ChainDrafter`."""
        return readout_row if self._head.feedback == "normed" else state


def _load_layers(config: MTPConfig, tensors: DrafterTensors) -> Sequence[nn.Module]:
    """The layers with a folder's weights, in the types of `DrafterTensors`; not evaluated."""
    model = build_model(config.family, config.arguments)
    # What mlx-lm keeps in its own type: a router's bias, which decides near-ties.
    cast = getattr(model, "cast_predicate", lambda name: "e_score_correction_bias" not in name)
    layers: Sequence[nn.Module] = model.layers
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
