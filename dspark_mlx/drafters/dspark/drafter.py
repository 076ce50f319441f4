"""The drafter of DSpark and DFlash: backbone, sequential head and confidence head make a Draft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Self

import mlx.core as mx

from ...checkpoint.base_config import CanonicalConfig
from ...checkpoint.linear import arrays_of
from ...sampling import Pick, greedy
from ...types import Draft
from ..base import DrafterContext, SharedParts
from ..batch import Wanted
from ..block import BlockBuilder, EachPick, fill_block
from ..heads import load_head
from ..heads.confidence import ConfidenceHead, load_confidence
from ..tensors import DrafterTensors
from ..vocabulary import Readout
from .backbone import Backbone, Weights
from .config import DSparkConfig
from .noise import noise_rows
from .parallel import ParallelDrafter


class DSparkDrafter(ParallelDrafter):
    """A DSpark or DFlash drafter that uses its target's embedding and head, see `base.Drafter`.

    Args:
        config: the canonical configuration.
        shared: see `SharedParts`; the output holds the sequential head.
        backbone: the parallel backbone.
        confidence: the confidence head; None without one.
    """

    CONFIG: ClassVar[type[CanonicalConfig]] = DSparkConfig

    def __init__(
        self,
        config: DSparkConfig,
        shared: SharedParts,
        backbone: Backbone,
        confidence: ConfidenceHead | None,
    ) -> None:
        super().__init__(config, shared, backbone)
        self._confidence = confidence

    @classmethod
    def load(cls, config: DSparkConfig, tensors: DrafterTensors, shared: SharedParts) -> Self:
        """See `DraftingMethod.load`."""
        weights = Weights.load(config, tensors)
        if config.noise_width:
            weights = replace(weights, added=noise_rows(tensors, config.block_size))
        confidence = load_confidence(config.confidence, tensors)
        head = load_head(config.head, tensors)
        mx.eval(arrays_of([weights, head, confidence]))
        backbone = Backbone(config, weights, tensors.dtype)
        return cls(config, shared.with_head(head), backbone, confidence)

    def choose(
        self,
        context: DrafterContext,
        hidden: mx.array,
        readout: Readout,
        anchor: mx.array,
        pick: Pick,
    ) -> Draft:
        """See `ParallelDrafter.choose`."""
        base, gamma = readout.logits(hidden), self.config.gamma
        block = BlockBuilder(readout, pick)
        rows = zip(mx.split(base, gamma), mx.split(hidden, gamma), strict=True)
        embeddings = fill_block(block, readout.head, anchor, rows)
        if self._confidence is None:
            return block.draft(base)
        confidence_logits = self._confidence(
            hidden, mx.concatenate(embeddings) if embeddings else None
        )
        confidence = mx.sigmoid(confidence_logits / context.confidence_temperatures)
        return block.draft(base, confidence_logits, confidence)

    def choose_each(
        self, hidden: mx.array, readout: Readout, wanted: Sequence[Wanted], temperatures: mx.array
    ) -> list[Draft]:
        """See `ParallelDrafter.choose_each`."""
        requests, gamma, width = hidden.shape
        flat = hidden.reshape(-1, width)
        base = readout.logits(flat).reshape(requests, gamma, -1)
        picks = EachPick([each.pick or greedy for each in wanted])
        block = BlockBuilder(readout, picks)
        rows = zip(base.swapaxes(0, 1), hidden.swapaxes(0, 1), strict=True)
        anchors = mx.concatenate([each.anchor for each in wanted])
        embeddings = fill_block(block, readout.head, anchors, rows)
        if self._confidence is None:
            return block.drafts(base, picks.weights)
        previous = mx.stack(embeddings, axis=1).reshape(flat.shape[0], -1) if embeddings else None
        logits = self._confidence(flat, previous).reshape(requests, gamma)
        return block.drafts(base, picks.weights, logits, mx.sigmoid(logits / temperatures))
