"""The drafter of DFlash 2: a backbone with convolutions, whose rows a selector reads out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import mlx.core as mx

from ...calibration.by_temperature import Calibrations
from ...checkpoint.base_config import CanonicalConfig
from ...checkpoint.linear import arrays_of
from ...sampling import Pick, greedy
from ...types import Draft
from ..base import DrafterContext, Embed
from ..batch import Wanted
from ..block import BlockBuilder, EachPick
from ..dspark.backbone import Backbone, Weights
from ..dspark.parallel import ParallelDrafter
from ..tensors import DrafterTensors
from ..vocabulary import DraftOutput, Readout
from .config import DFlash2Config
from .selector import Selector


class DFlash2Drafter(ParallelDrafter):
    """A DFlash 2 drafter that uses its target's embedding and head, see `base.Drafter`.

    Args:
        config: the canonical configuration.
        backbone: the parallel backbone, with its convolutions.
        selector: chooses the tokens.
        embed: token ids `[n]` to embeddings `[n, hidden]`, normally the target's table.
        output: turns hidden rows into logits.
        calibrations: expected acceptance, which some schedulers start from.
    """

    CONFIG: ClassVar[type[CanonicalConfig]] = DFlash2Config

    def __init__(
        self,
        config: DFlash2Config,
        backbone: Backbone,
        selector: Selector,
        embed: Embed,
        output: DraftOutput,
        calibrations: Calibrations | None = None,
    ) -> None:
        super().__init__(config, backbone, embed, output, calibrations)
        self._selector = selector

    @classmethod
    def load(
        cls,
        config: DFlash2Config,
        tensors: DrafterTensors,
        embed: Embed,
        output: DraftOutput,
        calibrations: Calibrations | None = None,
    ) -> DFlash2Drafter:
        """See `DraftingMethod.load`."""
        weights = Weights.load(config, tensors)
        selector = Selector.load(config.selector_top_k, tensors)
        mx.eval(arrays_of([weights, selector]))
        backbone = Backbone(config, weights, tensors.dtype)
        return cls(config, backbone, selector, embed, output, calibrations)

    def choose(
        self,
        context: DrafterContext,
        hidden: mx.array,
        readout: Readout,
        anchor: mx.array,
        pick: Pick,
    ) -> Draft:
        """See `ParallelDrafter.choose`."""
        base, block = readout.logits(hidden), BlockBuilder(readout, pick)
        self._selector.fill(block, readout, anchor, base[None], hidden[None])
        return block.draft(base)

    def choose_each(
        self, hidden: mx.array, readout: Readout, wanted: Sequence[Wanted], temperatures: mx.array
    ) -> list[Draft]:
        """See `ParallelDrafter.choose_each`."""
        picks = EachPick([each.pick or greedy for each in wanted])
        base, block = readout.logits(hidden), BlockBuilder(readout, picks)
        anchors = mx.concatenate([each.anchor for each in wanted])
        self._selector.fill(block, readout, anchors, base, hidden)
        return block.drafts(base, picks.weights)
