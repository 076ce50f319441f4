"""The drafter made of a target's own prediction head."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx

from ...calibration.by_temperature import Calibrations
from ...checkpoint.base_config import CanonicalConfig
from ...checkpoint.linear import arrays_of
from ..base import Embed
from ..chain import ChainDrafter
from ..tensors import DrafterTensors
from ..vocabulary import DraftOutput
from .config import MTPConfig
from .rows import MTPRows


class MTPDrafter(ChainDrafter):
    """A target's prediction head, see `base.Drafter`."""

    CONFIG: ClassVar[type[CanonicalConfig]] = MTPConfig

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
        rows = MTPRows.load(config, tensors, embed)
        mx.eval(arrays_of(rows.weights), [layer.parameters() for layer in rows.layers])
        return cls(config, 0, rows, embed, output, calibrations)
