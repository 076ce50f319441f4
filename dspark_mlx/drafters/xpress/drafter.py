"""The drafter of XPress: a parallel backbone, whose rows a refiner reads together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import mlx.core as mx

from ...checkpoint.base_config import CanonicalConfig
from ...checkpoint.linear import arrays_of
from ...sampling import Pick
from ...types import Draft
from ..base import DrafterContext, SharedParts
from ..batch import OneByOne
from ..block import BlockBuilder, fill_block
from ..dspark.backbone import Backbone, Weights
from ..dspark.parallel import ParallelDrafter
from ..tensors import DrafterTensors
from .config import XPressConfig
from .refiner import Refiner


@dataclass
class XPressContext(DrafterContext):
    """See `DrafterContext`.

    Attributes:
        newest: the newest token of the context, int `[1]`; None while it is empty.
    """

    newest: mx.array | None = None

    def arrays(self) -> list[mx.array]:
        """See `DrafterContext.arrays`."""
        return super().arrays() + ([] if self.newest is None else [self.newest])


class XPressDrafter(ParallelDrafter):
    """An XPress drafter that uses its target's embedding and head, see `base.Drafter`.

    Where the anchor's row gives no logits, the later rows still read what the refiner makes of it,
    which depends on the token before the anchor.

    Args:
        config: the canonical configuration.
        shared: see `SharedParts`; the output needs no head yet.
        backbone: the parallel backbone.
        refiner: corrects the logits.
    """

    CONFIG: ClassVar[type[CanonicalConfig]] = XPressConfig
    CONTEXT: ClassVar[type[DrafterContext]] = XPressContext

    def __init__(
        self,
        config: XPressConfig,
        shared: SharedParts,
        backbone: Backbone,
        refiner: Refiner,
    ) -> None:
        super().__init__(config, shared.with_head(refiner), backbone)
        self._refiner = refiner

    @classmethod
    def load(cls, config: XPressConfig, tensors: DrafterTensors, shared: SharedParts) -> Self:
        """See `DraftingMethod.load`."""
        weights, refiner = Weights.load(config, tensors), Refiner.load(tensors)
        mx.eval(arrays_of([weights, refiner]))
        return cls(config, shared, Backbone(config, weights, tensors.dtype), refiner)

    def extend(
        self,
        context: DrafterContext,
        taps: Sequence[mx.array],
        tokens: mx.array,
        rows: int | None = None,
    ) -> None:
        """See `Drafter.extend`."""
        assert isinstance(context, XPressContext)
        super().extend(context, taps, tokens, rows)
        if count := tokens.size if rows is None else rows:
            context.newest = tokens[count - 1 : count]

    def draft(self, context: DrafterContext, anchor: mx.array, pick: Pick) -> Draft:
        """See `Drafter.draft`."""
        assert isinstance(context, XPressContext)
        hidden = self._block(context.caches, anchor, self._take_pending(context))
        inputs, start, state = self._refiner.inputs(hidden), self.config.logits_start, None
        if start:
            before = anchor if context.newest is None else context.newest
            *_, state = self._refiner.vector(before, inputs[:1], None)
        readout, gamma = self._output.readout(context.vocabulary), self.config.gamma
        base, block = readout.logits(hidden[start:]), BlockBuilder(readout, pick)
        rows = zip(mx.split(base, gamma), mx.split(inputs[start:], gamma), strict=True)
        fill_block(block, readout.head, anchor, rows, state)
        return block.draft(base)

    def batch(self, contexts: Sequence[DrafterContext]) -> OneByOne:
        """See `drafters.batch.BatchingDrafter`; each request drafts by itself."""
        return OneByOne(self, contexts)
