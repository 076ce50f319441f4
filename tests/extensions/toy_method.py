"""A drafting method in one file, as docs/extending.md describes it: the newest feature, repeated.

Every slot is read from the projected newest feature, shifted by the embedding of the token before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from dspark_mlx.calibration.by_temperature import Calibrations
from dspark_mlx.calibration.sts import identity
from dspark_mlx.checkpoint.base_config import CanonicalConfig
from dspark_mlx.checkpoint.layer_shapes import shared_matrices
from dspark_mlx.checkpoint.linear import Matrix
from dspark_mlx.drafters.base import DrafterContext, SharedParts
from dspark_mlx.drafters.block import BlockBuilder
from dspark_mlx.drafters.methods import METHODS
from dspark_mlx.drafters.tensors import DrafterTensors
from dspark_mlx.sampling import Pick
from dspark_mlx.types import Draft


@dataclass(frozen=True, kw_only=True)
class ToyConfig(CanonicalConfig):
    """A drafter without layers."""

    METHOD: ClassVar[str] = "toy"
    EXAMPLE: ClassVar[dict[str, Any]] = {"slots": 3}

    slots: int

    @property
    def gamma(self) -> int:
        return self.slots

    @property
    def summary(self) -> str:
        return f"toy, {self.slots} slots"

    def matrix_shapes(self) -> dict[str, tuple[int, int]]:
        return shared_matrices(self)

    def vector_shapes(self) -> dict[str, tuple[int]]:
        return {}

    def _check(self, where: Path | str) -> None:
        self._check_positive(where, "slots")
        super()._check(where)


class ToyDrafter:
    """Reads every slot from the newest feature and the token before the slot."""

    CONFIG: ClassVar[type[CanonicalConfig]] = ToyConfig

    def __init__(self, config: ToyConfig, fc: Matrix, shared: SharedParts) -> None:
        self.config = config
        self.calibrations = Calibrations({0.0: identity(config.gamma)})
        self._fc = fc
        self._embed = shared.embed
        self._output = shared.output

    @classmethod
    def load(cls, config: ToyConfig, tensors: DrafterTensors, shared: SharedParts) -> ToyDrafter:
        return cls(config, tensors.matrix("fc"), shared)

    @property
    def vocabulary_size(self) -> int:
        return self._output.size or self.config.output_size

    def new_context(self, prompt: Iterable[int] = (), temperature: float = 0.0) -> DrafterContext:
        temperatures = mx.array(self.calibrations.at(temperature).temperatures)
        return DrafterContext([KVCache()], temperatures, self._output.vocabulary(prompt))

    def extend(
        self,
        context: DrafterContext,
        taps: Sequence[mx.array],
        tokens: mx.array,
        rows: int | None = None,
    ) -> None:
        context.add(taps, tokens, rows)

    def flush(self, context: DrafterContext) -> None:
        features = self._features(context)
        if features is not None:
            rows = features[None, None]
            context.caches[0].update_and_fetch(rows, rows)

    def draft(self, context: DrafterContext, anchor: mx.array, pick: Pick) -> Draft:
        self.flush(context)
        cache = context.caches[0]
        newest = cache.keys[0, 0, cache.offset - 1 : cache.offset]
        readout = self._output.readout(context.vocabulary)
        block, previous = BlockBuilder(readout, pick), anchor
        for _ in range(self.config.gamma):
            previous = block.add(readout.logits(newest + self._embed(previous)))
        return block.draft()

    def _features(self, context: DrafterContext) -> mx.array | None:
        pending = context.take()
        return None if pending is None else self._fc(pending[0])


METHODS[ToyConfig.METHOD] = ToyDrafter
