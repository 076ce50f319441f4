"""Eagle3's drafter: one layer that drafts a block token by token from the target's features.

Its rotary position is that of the feature. See `chain` for the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import mlx.core as mx

from ..calibration.by_temperature import Calibrations
from ..checkpoint.base_config import MAX_BLOCK, CanonicalConfig
from ..checkpoint.layer_shapes import layer_matrices, layer_vectors, shared_matrices
from ..checkpoint.linear import Matrix, arrays_of
from ..checkpoint.number_ranges import LARGEST, check_within
from ..errors import InputError
from .base import Embed
from .chain import ChainDrafter
from .context_cache import ContextCache
from .layers import Layer, LayerParts
from .tensors import DrafterTensors
from .vocabulary import DraftOutput

TAP_NORMS = ("none", "each", "all")
STATES = ("raw", "normed")
INPUT_NORM = "input_norm.weight"


def tap_norm(tap: int) -> str:
    """Name of the norm of one tap, by its place among the taps."""
    return f"fc_norm.{tap}.weight"


@dataclass(frozen=True, kw_only=True)
class Eagle3Config(CanonicalConfig):
    """An Eagle3 drafter: one layer, run once a token (DeepSpec's and EAGLE's draft models).

    Attributes:
        steps: tokens proposed per round (DeepSpec's `ttt_length`).
        window: how many of the newest rows a row attends to, itself included; 0 for all.
        tap_norms: what is normed before the projection of the taps: "none", "each" tap by itself,
            or "all" of them as one row.
        residual: what is added to the attention's output: the feature as it is ("raw"), or normed
            as the attention reads it ("normed").
        feedback: what takes the next feature's place: the layer's output ("raw"), or what is read
            out of it ("normed").
    """

    METHOD: ClassVar[str] = "eagle3"
    EXAMPLE: ClassVar[dict[str, Any]] = {"steps": 4}
    PROPOSES: ClassVar[str] = "chains"

    steps: int
    window: int = 0
    tap_norms: str = "none"
    residual: str = "raw"
    feedback: str = "raw"

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

    @property
    def attended(self) -> tuple[int, ...]:
        """See `CanonicalConfig.attended`."""
        return (self.window,) if self.window else ()

    def with_window(self, window: int) -> Eagle3Config:
        """See `CanonicalConfig.with_window`."""
        return replace(self, window=min(self.window or window, window))

    def _check(self, where: Path | str) -> None:
        check_within(where, "steps", self.steps, 1, MAX_BLOCK)
        check_within(where, "window", self.window, 0, LARGEST)
        for name, known in (
            ("tap_norms", TAP_NORMS),
            ("residual", STATES),
            ("feedback", STATES),
        ):
            if (found := getattr(self, name)) not in known:
                raise InputError(where, f"{name} {found!r}", f"one of {', '.join(known)}")
        super()._check(where)

    def matrix_shapes(self) -> dict[str, tuple[int, int]]:
        """See `CanonicalConfig.matrix_shapes`."""
        # The layer reads a token's embedding and a feature side by side.
        return shared_matrices(self) | layer_matrices(self, "layers.0", 2 * self.hidden_size)

    def vector_shapes(self) -> dict[str, tuple[int]]:
        """See `CanonicalConfig.vector_shapes`."""
        hidden = (self.hidden_size,)
        norms = {"norm.weight": hidden, "layers.0.hidden_norm.weight": hidden}
        if self.tap_norms == "all":
            norms[INPUT_NORM] = (len(self.taps) * self.target_hidden_size,)
        if self.tap_norms == "each":
            norms |= {tap_norm(i): (self.target_hidden_size,) for i in range(len(self.taps))}
        return norms | layer_vectors(self, "layers.0")

    def alternatives(self) -> dict[str, tuple[Any, ...]]:
        """See `CanonicalConfig.alternatives`."""
        return {"residual": STATES, "feedback": STATES, **super().alternatives()}


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


class Eagle3Drafter(ChainDrafter):
    """An Eagle3 drafter that uses its target's embedding and head, see `base.Drafter`.

    Args:
        config: the canonical configuration.
        weights: the fused weights.
        dtype: type of the arithmetic.
        embed, output, calibrations: see `ChainDrafter`.
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
        super().__init__(config, config.window, embed, output, calibrations)
        self._eagle = config
        self._weights = weights
        self._dtype = dtype
        self._parts = LayerParts(config)
        self._kv = weights.qkv.slice(config.query_size, weights.qkv.out_features)
        mx.eval(arrays_of(self._kv))

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
        weights = Eagle3Weights.load(config, tensors)
        mx.eval(arrays_of(weights))
        return cls(config, weights, tensors.dtype, embed, output, calibrations)

    def _features(self, taps: mx.array) -> mx.array:
        """See `ChainDrafter`."""
        taps, norms = taps.astype(self._dtype), self._weights.tap_norms
        if norms:
            parts = zip(mx.split(taps, len(norms), axis=-1), norms, strict=True)
            taps = mx.concatenate([self._norm(tap, weight) for tap, weight in parts], axis=-1)
        return self._weights.fc(taps)

    def _norm(self, x: mx.array, weight: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, weight, self.config.rms_norm_eps)

    def _inputs(self, features: mx.array, tokens: mx.array) -> mx.array:
        """The attention's input, next token's embedding beside feature, `[rows, 2 * hidden]`."""
        weights = self._weights
        embedded = self._parts.embedded(self._embed(tokens), self._dtype)
        normed = self._norm(features, weights.feature_norm)
        return mx.concatenate([self._norm(embedded, weights.layer.input_norm), normed], axis=-1)

    def _write(self, cache: ContextCache, features: mx.array, tokens: mx.array) -> None:
        """See `ChainDrafter`."""
        self._parts.write(self._weights.layer, cache, self._kv(self._inputs(features, tokens)))

    def _step(self, cache: ContextCache, features: mx.array, tokens: mx.array) -> mx.array:
        """See `ChainDrafter`."""
        layer, window = self._weights.layer, self._window
        projected = self._weights.qkv(self._inputs(features, tokens))
        queries, kv = mx.split(projected, [self.config.query_size], axis=-1)
        keys, values = self._parts.write(layer, cache, kv)
        if window:
            keys, values = (a[..., -window:, :] for a in (keys, values))
        # The last row attends to all of these, so it needs no mask.
        attended = self._parts.attend(layer, queries[-1:], keys, values, cache.offset - 1, None)
        return self._parts.finish(layer, self._residual(features[-1:]), attended)

    def _residual(self, features: mx.array) -> mx.array:
        """What is added to the attention's output."""
        normed = self._eagle.residual == "normed"
        return self._norm(features, self._weights.feature_norm) if normed else features

    def _readout_row(self, state: mx.array) -> mx.array:
        """See `ChainDrafter`."""
        return self._norm(state, self._weights.norm)

    def _fed_back(self, state: mx.array, readout_row: mx.array) -> mx.array:
        """See `ChainDrafter`."""
        return readout_row if self._eagle.feedback == "normed" else state


def _tap_norms(config: Eagle3Config, tensors: DrafterTensors) -> tuple[mx.array, ...]:
    if config.tap_norms == "each":
        return tuple(tensors.vector(tap_norm(i)) for i in range(len(config.taps)))
    return (tensors.vector(INPUT_NORM),) if config.tap_norms == "all" else ()
