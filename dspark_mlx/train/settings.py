"""Everything that a training run is defined by; a run goes on only with equal settings."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ..checkpoint.base_config import CanonicalConfig
from ..checkpoint.quantization import (
    Quantization,
    check_quantization,
    choose_quantization,
)
from ..errors import InputError
from .step.batches import BatchSettings
from .step.learner import Recipe
from .step.objective import Objective

_ROWS = 1 << 26
"""Logits that exist at once, unless said otherwise: 256 MB in float32."""


@dataclass(frozen=True)
class TrainingSettings:
    """A run's settings.

    Attributes:
        recipe: steps and learning rate. objective: weights of the terms. batches: of texts.
        held_out: texts that are not learnt from, to judge on.
        evaluate_every: steps between evaluations on them. save_every: between checkpoints.
        patience: evaluations without a better one that end the run early; 0 never does.
        chunk: rows whose logits exist at once; 0 chooses.
        checkpoint_layers: compute layers again in the backward pass, which saves memory.
        compiled: fuse the step's kernels.
        precision: of the arithmetic, "float32" or "bfloat16".
        qat_bits: bits that the drafter will be quantised to, which it is then trained for; 0 for
            none. qat_group_size: weights that share a scale.
    """

    recipe: Recipe
    objective: Objective = field(default_factory=Objective)
    batches: BatchSettings = field(default_factory=BatchSettings)
    held_out: int = 64
    evaluate_every: int = 200
    save_every: int = 200
    patience: int = 0
    chunk: int = 0
    checkpoint_layers: bool = False
    compiled: bool = False
    precision: str = "float32"
    qat_bits: int = 0
    qat_group_size: int = 64

    def check(self) -> None:
        """Refuse settings that cannot be meant.

        Raises:
            InputError: a number outside of its range, or an unknown precision.
        """
        for part in (self.recipe, self.objective, self.batches):
            part.check()
        for name in ("held_out", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "1 or more")
        for name in ("patience", "chunk"):
            if getattr(self, name) < 0:
                raise InputError(name, getattr(self, name), "0 or more")
        if self.precision not in ("float32", "bfloat16"):
            raise InputError("precision", repr(self.precision), "float32 or bfloat16")
        if self.qat_bits:
            check_quantization("quantisation", self.qat_bits, self.qat_group_size)

    def rows(self, vocabulary: int) -> int:
        """Rows whose logits over a vocabulary exist at once."""
        return self.chunk or max(_ROWS // vocabulary, 64)

    def quantization(self, config: CanonicalConfig) -> Quantization | None:
        """What a drafter is trained to be stored as; None for plain weights."""
        if not self.qat_bits:
            return None
        return choose_quantization(config.matrix_shapes(), self.qat_bits, self.qat_group_size)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)
