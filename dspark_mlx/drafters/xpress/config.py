"""The canonical configuration of XPress drafters, and their tensors' shapes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..dspark.config import BlockConfig
from .refiner import DOWN, EMBEDDING, GATE, JOINT, MEAN, MIXING, READOUT, ROW, UP


@dataclass(frozen=True, kw_only=True)
class XPressConfig(BlockConfig):
    """An XPress drafter (vLLM's speculators, `models/xpress`).

    Attributes:
        refiner_rank: width of the refiner's vectors.
        refiner_size: width inside the refiner's gated MLP.
    """

    METHOD: ClassVar[str] = "xpress"
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "num_layers": 1,
        "block_size": 5,
        "logits_start": 1,
        "mask_token_id": 0,
        "refiner_rank": 8,
        "refiner_size": 16,
    }

    refiner_rank: int
    refiner_size: int

    @property
    def summary(self) -> str:
        """A description of the drafter in a few words."""
        layers = f"XPress, {self.num_layers} layers, block of {self.block_size}"
        return f"{layers}, refiner of rank {self.refiner_rank}"

    def matrix_shapes(self) -> dict[str, tuple[int, int]]:
        """See `CanonicalConfig.matrix_shapes`."""
        rank, size = self.refiner_rank, self.refiner_size
        return super().matrix_shapes() | {
            EMBEDDING: (self.vocab_size, rank),
            ROW: (rank, self.hidden_size),
            MEAN: (rank, self.hidden_size),
            JOINT: (rank, 3 * rank),
            GATE: (size, rank),
            UP: (size, rank),
            DOWN: (rank, size),
            READOUT: (self.output_size, rank),
        }

    def vector_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `CanonicalConfig.vector_shapes`."""
        mixing = (self.refiner_rank, self.block_size, self.block_size)
        return super().vector_shapes() | {MIXING: mixing}

    def _check(self, where: Path | str) -> None:
        self._check_positive(where, "refiner_rank refiner_size")
        super()._check(where)
