"""P-EAGLE's drafter: Eagle3's layer, and layers behind it, that draft a block in one forward.

Eagle3's later rows read the output of the row before. Here they read a learnt feature and the mask
token instead, so that all rows run at once. A row attends to all rows before it: those of committed
tokens, and those of its own block. Its tokens are chosen independently of each other.
Source: vLLM's speculators, `models/peagle`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import mlx.core as mx

from ..checkpoint.base_config import CanonicalConfig
from ..checkpoint.layer_shapes import layer_matrices, layer_vectors
from ..checkpoint.linear import Matrix, arrays_of
from ..errors import InputError
from ..sampling import Pick
from ..types import Draft
from .base import DrafterContext, SharedParts
from .block import BlockBuilder
from .chain import keep_newest
from .chain_config import STATES
from .context_cache import ContextCache
from .contexts import RequestContexts
from .eagle3.config import Eagle3Config
from .eagle3.rows import Eagle3Rows
from .layers import Layer
from .tensors import DrafterTensors

MASK_FEATURE = "mask_hidden"
"""Name of the vector that stands for the taps of rows whose tokens are not known."""


@dataclass(frozen=True, kw_only=True)
class PEagleConfig(Eagle3Config):
    """A P-EAGLE drafter, see `Eagle3Config`; it has no windows and feeds nothing back.

    Attributes:
        num_layers: layers; only the first reads embeddings and features.
        mask_token_id: id in the rows after the first.
    """

    METHOD: ClassVar[str] = "peagle"
    EXAMPLE: ClassVar[dict[str, Any]] = {"steps": 4, "num_layers": 2, "mask_token_id": 0}
    PROPOSES: ClassVar[str] = "blocks"

    num_layers: int
    mask_token_id: int

    @property
    def depth(self) -> int:
        """See `CanonicalConfig.depth`."""
        return self.num_layers

    @property
    def summary(self) -> str:
        """A description of the drafter in a few words."""
        return f"P-EAGLE, {self.num_layers} layers, block of {self.steps}"

    def with_window(self, window: int) -> PEagleConfig:
        """See `CanonicalConfig.with_window`: always refused."""
        return CanonicalConfig.with_window(self, window)

    def matrix_shapes(self) -> dict[str, tuple[int, int]]:
        """See `CanonicalConfig.matrix_shapes`."""
        shapes = super().matrix_shapes()
        for i in range(1, self.num_layers):
            shapes |= layer_matrices(self, f"layers.{i}", self.hidden_size)
        return shapes

    def vector_shapes(self) -> dict[str, tuple[int]]:
        """See `CanonicalConfig.vector_shapes`."""
        shapes = super().vector_shapes()
        shapes[MASK_FEATURE] = (len(self.taps) * self.target_hidden_size,)
        for i in range(1, self.num_layers):
            shapes |= layer_vectors(self, f"layers.{i}")
        return shapes

    def alternatives(self) -> dict[str, tuple[Any, ...]]:
        """See `CanonicalConfig.alternatives`."""
        return {"residual": STATES, **CanonicalConfig.alternatives(self)}

    def _check(self, where: Path | str) -> None:
        self._check_positive(where, "num_layers")
        if self.window or self.feedback != "raw":
            found = f"window {self.window}, feedback {self.feedback!r}"
            raise InputError(where, found, "0 and 'raw': the method has neither")
        super()._check(where)
        self._check_token(where, "mask_token_id")


class PEagleDrafter(RequestContexts[CanonicalConfig]):
    """A P-EAGLE drafter, see `base.Drafter`.

    Args:
        config: the canonical configuration.
        shared: see `SharedParts`.
        rows: the first layer, and what surrounds the layers.
        later: the other layers: query, key and value rows, and the rest.
        mask_feature: what stands for the taps of rows after the first, `[1, taps * hidden]`.
    """

    CONFIG: ClassVar[type[CanonicalConfig]] = PEagleConfig

    def __init__(
        self,
        config: PEagleConfig,
        shared: SharedParts,
        rows: Eagle3Rows,
        later: list[tuple[Matrix, Layer]],
        mask_feature: mx.array,
    ) -> None:
        super().__init__(config, shared)
        self._rows = rows
        self._later = later
        masks = config.steps - 1
        self._mask_features = mx.repeat(self._rows.features(mask_feature), masks, axis=0)
        self._mask_tokens = mx.full((masks,), config.mask_token_id, dtype=mx.int32)
        mx.eval(self._mask_features, self._mask_tokens)

    @classmethod
    def load(cls, config: PEagleConfig, tensors: DrafterTensors, shared: SharedParts) -> Self:
        """See `DraftingMethod.load`."""
        rows = Eagle3Rows.load(config, tensors, shared.embed)
        names = [f"layers.{i}" for i in range(1, config.num_layers)]
        later = [(tensors.qkv(name), tensors.layer(name)) for name in names]
        mask_feature = tensors.vector(MASK_FEATURE)[None]
        mx.eval(arrays_of([rows.weights, later, mask_feature]))
        return cls(config, shared, rows, later, mask_feature)

    def _new_caches(self) -> list[ContextCache]:
        return [ContextCache() for _ in range(1 + len(self._later))]

    def flush(self, context: DrafterContext) -> None:
        """See `Drafter.flush`; the newest row stays pending, since its next token is not known."""
        pending = context.take()
        if pending is None:
            return
        taps, tokens = pending
        if tokens.size > 1:
            self._forward(context, self._rows.features(taps[:-1]), tokens[1:])
        keep_newest(context, taps, tokens)

    def draft(self, context: DrafterContext, anchor: mx.array, pick: Pick) -> Draft:
        """See `Drafter.draft`; the context must hold a committed token's feature."""
        pending = context.take()
        assert pending is not None, "a draft needs the features of a committed token"
        taps, tokens = pending
        keep_newest(context, taps, tokens)
        readout, gamma = self._output.readout(context.vocabulary), self.config.gamma
        features = mx.concatenate([self._rows.features(taps), self._mask_features])
        following = mx.concatenate([tokens[1:], anchor, self._mask_tokens])
        rows = self._rows.readout_row(self._forward(context, features, following)[-gamma:])
        # Removes the newest row and the masked ones.
        context.trim(gamma)
        block = BlockBuilder(readout, pick)
        for row in mx.split(readout.logits(rows), gamma):
            block.add(row)
        return block.draft()

    def _forward(self, context: DrafterContext, features: mx.array, tokens: mx.array) -> mx.array:
        """Append rows to the caches; their output, `[rows, hidden]`.

        Args:
            context: with K/V of all rows before.
            features: `[rows, hidden]`.
            tokens: the token after each feature, int `[rows]`.
        """
        first, parts, caches = self._rows, self._rows.parts, context.caches
        start, rows = caches[0].offset, tokens.size
        columns = mx.arange(start + rows)
        mask = None if rows == 1 else columns[None] <= columns[start:, None]
        layers = [(first.weights.qkv, first.weights.layer), *self._later]
        x = features
        for i, (qkv, layer) in enumerate(layers):
            normed = first.norm(x, layer.input_norm) if i else first.inputs(x, tokens)
            queries, kv = mx.split(qkv(normed), [self.config.query_size], axis=-1)
            keys, values = parts.write(layer, caches[i], kv)
            attended = parts.attend(layer, queries, keys, values, start, mask)
            residual = x if i else first.residual(x)
            x = parts.finish(layer, residual, attended)
        return x
