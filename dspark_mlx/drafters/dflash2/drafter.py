"""The drafter of DFlash 2: a backbone with convolutions, whose rows a selector reads out."""

from __future__ import annotations

from typing import ClassVar, Self

import mlx.core as mx

from ...checkpoint.base_config import CanonicalConfig
from ...checkpoint.linear import arrays_of
from ..base import SharedParts
from ..block import BlockBuilder
from ..dspark.backbone import Backbone, Weights
from ..dspark.parallel import ParallelDrafter
from ..tensors import DrafterTensors
from ..vocabulary import Readout
from .config import DFlash2Config
from .selector import Selector


class DFlash2Drafter(ParallelDrafter):
    """A DFlash 2 drafter that uses its target's embedding and head, see `base.Drafter`.

    Args:
        config: the canonical configuration.
        shared: see `SharedParts`.
        backbone: the parallel backbone, with its convolutions.
        selector: chooses the tokens.
    """

    CONFIG: ClassVar[type[CanonicalConfig]] = DFlash2Config

    def __init__(
        self,
        config: DFlash2Config,
        shared: SharedParts,
        backbone: Backbone,
        selector: Selector,
    ) -> None:
        super().__init__(config, shared, backbone)
        self._selector = selector

    @classmethod
    def load(cls, config: DFlash2Config, tensors: DrafterTensors, shared: SharedParts) -> Self:
        """See `DraftingMethod.load`."""
        weights = Weights.load(config, tensors)
        selector = Selector.load(config.selector_top_k, tensors)
        mx.eval(arrays_of([weights, selector]))
        return cls(config, shared, Backbone(config, weights, tensors.dtype), selector)

    def fill(
        self,
        block: BlockBuilder,
        readout: Readout,
        anchors: mx.array,
        base: mx.array,
        hidden: mx.array,
    ) -> None:
        """See `ParallelDrafter.fill`."""
        self._selector.fill(block, readout, anchors, base, hidden)
