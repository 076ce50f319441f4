"""The drafter of DeepSeek V4's embedded head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import mlx.core as mx

from ...checkpoint.base_config import CanonicalConfig
from ...checkpoint.linear import Matrix, arrays_of
from ...sampling import Pick
from ...types import Draft
from ..base import DrafterContext, SharedParts
from ..block import BlockBuilder, fill_block
from ..contexts import RequestContexts
from ..heads import load_head
from ..heads.confidence import ConfidenceHead, load_unbiased_confidence
from ..tensors import DrafterTensors
from .config import DeepseekV4Config
from .ring import LatentRing
from .stages import Stages


@dataclass(frozen=True)
class Projection:
    """Makes the rows of which every stage's ring is made.

    Attributes:
        fc: projection of the concatenated taps, `[hidden, taps * target_hidden]`.
        norm: weight of the norm behind it, `[hidden]`.
        eps: epsilon of that norm.
    """

    fc: Matrix
    norm: mx.array
    eps: float

    def __call__(self, features: mx.array) -> mx.array:
        """Concatenated taps `[rows, taps * target_hidden]` to `[rows, hidden]`."""
        return mx.fast.rms_norm(self.fc(features.astype(self.norm.dtype)), self.norm, self.eps)


class DeepseekV4Drafter(RequestContexts[DeepseekV4Config]):
    """The head that a DeepSeek V4 checkpoint has inside, see `base.Drafter`.

    It shares its target's embedding and output matrix. Its confidence head reads the rows before
    the final norm, and has no bias.

    Args:
        config: the canonical configuration.
        shared: see `SharedParts`; the output holds the Markov head.
        projection: of the target's features.
        stages: the backbone.
        norm: weight of the final norm, `[hidden]`.
        confidence: the confidence head.
    """

    CONFIG: ClassVar[type[CanonicalConfig]] = DeepseekV4Config

    def __init__(
        self,
        config: DeepseekV4Config,
        shared: SharedParts,
        projection: Projection,
        stages: Stages,
        norm: mx.array,
        confidence: ConfidenceHead,
    ) -> None:
        super().__init__(config, shared)
        self._projection = projection
        self._stages = stages
        self._norm = norm
        self._confidence = confidence
        self._masks = mx.full((config.block_size - 1,), config.mask_token_id, dtype=mx.int32)
        mx.eval(self._masks)

    @classmethod
    def load(cls, config: DeepseekV4Config, tensors: DrafterTensors, shared: SharedParts) -> Self:
        """See `DraftingMethod.load`."""
        stages = Stages.of(config.args, tensors)
        projection = Projection(
            tensors.matrix("fc"), tensors.vector("hidden_norm.weight"), config.rms_norm_eps
        )
        norm = tensors.vector("norm.weight")
        confidence, head = load_unbiased_confidence(tensors), load_head("vanilla", tensors)
        mx.eval(arrays_of([projection, stages, norm, confidence, head]))
        return cls(config, shared.with_head(head), projection, stages, norm, confidence)

    def _new_caches(self) -> list[LatentRing]:
        return [LatentRing(self.config.window) for _ in range(self.config.num_layers)]

    def flush(self, context: DrafterContext) -> None:
        """See `Drafter.flush`."""
        pending = context.take()
        if pending is None:
            return
        features, _ = pending
        skipped = max(features.shape[0] - self.config.window, 0)
        self._stages.extend(context.caches, self._projection(features[skipped:]), skipped)

    def draft(self, context: DrafterContext, anchor: mx.array, pick: Pick) -> Draft:
        """See `Drafter.draft`; the block is always run whole."""
        self.flush(context)
        embedded = self._embed(mx.concatenate([anchor, self._masks]))
        rows = self._stages.block(context.caches, embedded)
        hidden = mx.fast.rms_norm(rows, self._norm, self.config.rms_norm_eps)
        readout, gamma = self._output.readout(context.vocabulary), self.config.gamma
        base = readout.logits(hidden)
        block = BlockBuilder(readout, pick)
        slots = zip(mx.split(base, gamma), mx.split(hidden, gamma), strict=True)
        embeddings = fill_block(block, readout.head, anchor, slots)
        confidence_logits = self._confidence(rows, mx.concatenate(embeddings))
        confidence = mx.sigmoid(confidence_logits / context.confidence_temperatures)
        return block.draft(base, confidence_logits, confidence)
