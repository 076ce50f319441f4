"""The drafter of Eagle3."""

from __future__ import annotations

from typing import ClassVar, Self

import mlx.core as mx

from ...checkpoint.base_config import CanonicalConfig
from ...checkpoint.linear import arrays_of
from ..base import SharedParts
from ..chain import ChainDrafter
from ..tensors import DrafterTensors
from .config import Eagle3Config
from .rows import Eagle3Rows, Eagle3Weights


class Eagle3Drafter(ChainDrafter):
    """An Eagle3 drafter that uses its target's embedding and head, see `base.Drafter`."""

    CONFIG: ClassVar[type[CanonicalConfig]] = Eagle3Config

    @classmethod
    def load(cls, config: Eagle3Config, tensors: DrafterTensors, shared: SharedParts) -> Self:
        """See `DraftingMethod.load`."""
        weights = Eagle3Weights.load(config, tensors)
        mx.eval(arrays_of(weights))
        rows = Eagle3Rows(config, weights, tensors.dtype, shared.embed)
        mx.eval(arrays_of(rows.kv))
        return cls(config, shared, config.window, rows)
