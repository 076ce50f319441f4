"""The drafter made of a target's own prediction head."""

from __future__ import annotations

from typing import ClassVar, Self

import mlx.core as mx

from ...checkpoint.base_config import CanonicalConfig
from ...checkpoint.linear import arrays_of
from ..base import SharedParts
from ..chain import ChainDrafter
from ..tensors import DrafterTensors
from .config import MTPConfig
from .rows import MTPRows


class MTPDrafter(ChainDrafter):
    """A target's prediction head, see `base.Drafter`."""

    CONFIG: ClassVar[type[CanonicalConfig]] = MTPConfig

    @classmethod
    def load(cls, config: MTPConfig, tensors: DrafterTensors, shared: SharedParts) -> Self:
        """See `DraftingMethod.load`."""
        rows = MTPRows.load(config, tensors, shared.embed)
        mx.eval(arrays_of(rows.weights), [layer.parameters() for layer in rows.layers])
        return cls(config, shared, 0, rows)
