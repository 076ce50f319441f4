"""The plain prediction layer of the first DeepSeek V4-Flash as a drafter: the next token alone.

A row joins all copies of the target's last stream at position i with the embedding of the token at
i + 1, and predicts the token at i + 2. Each copy is normed and projected by itself, and the
projected embedding is added to all of them. The layer sees a window, as those of DSpark's head.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import mlx.core as mx

from ...checkpoint.base_config import CanonicalConfig
from ...checkpoint.linear import Matrix, arrays_of
from ...deepseek_v4.hyper_connections import reduce
from ..base import Embed, SharedParts
from ..chain import ChainDrafter
from ..chain_config import ChainConfig
from ..context_cache import ContextCache
from ..tensors import DrafterTensors
from .layers_config import LayersConfig
from .stages import Stages


@dataclass(frozen=True, kw_only=True)
class DeepseekV4MTPConfig(ChainConfig, LayersConfig):
    """DeepSeek V4's plain prediction layer.

    Attributes:
        steps: tokens proposed per round. The layer was trained for one; for more, its own output
            takes the place of the target's stream.
    """

    METHOD: ClassVar[str] = "deepseek_v4_mtp"
    EXAMPLE: ClassVar[dict[str, Any]] = LayersConfig.LAYERS_EXAMPLE | {"steps": 2}
    READS_COPIES: ClassVar[bool] = True

    steps: int

    @property
    def summary(self) -> str:
        """A description of the drafter in a few words."""
        return f"DeepSeek V4's prediction layer, {self.steps} steps"

    def matrix_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `CanonicalConfig.matrix_shapes`."""
        square = (self.hidden_size, self.hidden_size)
        return {"e_proj": square, "h_proj": square} | super().matrix_shapes()

    def vector_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `CanonicalConfig.vector_shapes`."""
        names = ("embedding_norm", "hidden_norm", "norm")
        return {f"{name}.weight": (self.hidden_size,) for name in names} | super().vector_shapes()

    def _check(self, where: Path | str) -> None:
        self._check_within(where, "num_layers", 1, 1)
        super()._check(where)


@dataclass(frozen=True)
class MTPWeights:
    """The layer's weights beside `Stages`.

    Attributes:
        embedding, hidden: projections of the embedding and of each copy, `[hidden, hidden]`.
        embedding_norm, hidden_norm: weights of the norms before these, `[hidden]`.
        norm: weight of the final norm, `[hidden]`.
    """

    embedding: Matrix
    hidden: Matrix
    embedding_norm: mx.array
    hidden_norm: mx.array
    norm: mx.array


class DeepseekV4MTPRows:
    """See `chain.ChainRows`.

    Args:
        config: the canonical configuration.
        weights: see `MTPWeights`.
        stages: the layer and the reduction behind it.
        embed: token ids `[n]` to embeddings `[n, hidden]`.
    """

    def __init__(
        self, config: DeepseekV4MTPConfig, weights: MTPWeights, stages: Stages, embed: Embed
    ) -> None:
        self._config = config
        self._weights = weights
        self._embed = embed
        self._reduction = stages.hc_head
        self._layer = stages.layers[0]

    def features(self, taps: mx.array) -> mx.array:
        """See `ChainRows`; all copies side by side."""
        return taps.astype(self._weights.norm.dtype)

    def _streams(self, features: mx.array, tokens: mx.array) -> mx.array:
        """The layer's input, `[1, rows, copies, hidden]`; arguments as for `newest`."""
        weights, dtype = self._weights, features.dtype
        copies = self._norm(
            mx.unflatten(features, -1, (self._config.copies, -1)), weights.hidden_norm
        )
        embedded = self._norm(self._embed(tokens).astype(dtype), weights.embedding_norm)
        rows, count, hidden = copies.shape
        projected = weights.hidden(copies.reshape(rows * count, hidden)).reshape(copies.shape)
        return (projected + weights.embedding(embedded)[:, None])[None]

    def write(self, cache: ContextCache, features: mx.array, tokens: mx.array) -> None:
        """See `ChainRows`."""
        streams, layer = self._streams(features, tokens), self._layer
        into, _, _ = layer.hc_attn(streams)
        self._latent_rows(cache, layer.attn_norm(reduce(streams, into)))

    def newest(self, cache: ContextCache, features: mx.array, tokens: mx.array) -> mx.array:
        """See `ChainRows`; the output is all copies side by side."""
        if features.shape[0] > 1:
            self.write(cache, features[:-1], tokens[:-1])
        attn, start = self._layer.attn, cache.offset

        def attend(x: mx.array) -> mx.array:
            queries = attn.queries(attn.low_rank_queries(x), start)
            seen = self._latent_rows(cache, x)[:, -self._config.window :]
            return attn.output(attn.attend(queries, seen, None), start)

        streams, _ = self._layer.run(self._streams(features[-1:], tokens[-1:]), attend)
        return streams[0].flatten(-2)

    def _latent_rows(self, cache: ContextCache, x: mx.array) -> mx.array:
        """Append the latent rows of normed inputs; all that are held, `[1, rows, width]`."""
        rows = self._layer.attn.rows(x, cache.offset)[:, None]
        # A latent row is key and value.
        held, _ = cache.update_and_fetch(rows, rows)
        return held.squeeze(1)

    def readout_row(self, state: mx.array) -> mx.array:
        """See `ChainRows`."""
        streams = mx.unflatten(state, -1, (self._config.copies, -1))[None]
        return self._norm(self._reduction(streams).squeeze(0), self._weights.norm)

    def fed_back(self, state: mx.array, readout_row: mx.array) -> mx.array:
        """See `ChainRows`."""
        return state

    def _norm(self, x: mx.array, weight: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, weight, self._config.rms_norm_eps)


class DeepseekV4MTPDrafter(ChainDrafter):
    """The plain prediction layer of DeepSeek V4, see `base.Drafter`."""

    CONFIG: ClassVar[type[CanonicalConfig]] = DeepseekV4MTPConfig

    @classmethod
    def load(
        cls, config: DeepseekV4MTPConfig, tensors: DrafterTensors, shared: SharedParts
    ) -> Self:
        """See `DraftingMethod.load`."""
        weights = MTPWeights(
            embedding=tensors.matrix("e_proj"),
            hidden=tensors.matrix("h_proj"),
            embedding_norm=tensors.vector("embedding_norm.weight"),
            hidden_norm=tensors.vector("hidden_norm.weight"),
            norm=tensors.vector("norm.weight"),
        )
        stages = Stages.of(config.args, tensors)
        mx.eval(arrays_of([weights, stages]))
        rows = DeepseekV4MTPRows(config, weights, stages, shared.embed)
        return cls(config, shared, config.window, rows)
