"""The canonical configuration of DSpine drafters, and their tensors' shapes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ...checkpoint.number_ranges import check_within
from ...errors import InputError
from ..dspark.config import BlockConfig
from .injection import BIAS, CODES, SHARED, readout_name, write_name


@dataclass(frozen=True, kw_only=True)
class DSpineConfig(BlockConfig):
    """A DSpine drafter (SpecForge's dspine model).

    Attributes:
        transfer_rank: width of the codes of tokens and rows.
        message_size: width of what a row hears from the row before.
        top_k: the likeliest tokens of a slot that are read out again.
    """

    METHOD: ClassVar[str] = "dspine"
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "num_layers": 2,
        "block_size": 4,
        "logits_start": 1,
        "mask_token_id": 0,
        "causal": (True, True),
        "transfer_rank": 4,
        "message_size": 8,
        "top_k": 3,
    }

    transfer_rank: int
    message_size: int
    top_k: int

    @property
    def summary(self) -> str:
        """A description of the drafter in a few words."""
        return f"DSpine, {self.num_layers} layers, block of {self.block_size}"

    def matrix_shapes(self) -> dict[str, tuple[int, int]]:
        """See `CanonicalConfig.matrix_shapes`."""
        shapes = super().matrix_shapes()
        for i in range(self.num_layers):
            shapes[readout_name(i)] = (self.transfer_rank, self.hidden_size)
            shapes[write_name(i)] = (self.hidden_size, self.message_size)
        for name in SHARED:
            shapes[name] = (self.message_size, self.transfer_rank)
        return shapes | {CODES: (self.vocab_size, self.transfer_rank)}

    def vector_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `CanonicalConfig.vector_shapes`."""
        return super().vector_shapes() | {BIAS: (self.message_size,)}

    def _check(self, where: Path | str) -> None:
        self._check_positive(where, "transfer_rank message_size")
        check_within(where, "top_k", self.top_k, 1, self.vocab_size)
        super()._check(where)
        if self.logits_start != 1 or self.draft_vocab_size:
            found = f"logits_start {self.logits_start}, draft_vocab_size {self.draft_vocab_size}"
            raise InputError(where, found, "1 and 0, as DSpine drafters have")

    def alternatives(self) -> dict[str, tuple[Any, ...]]:
        """See `CanonicalConfig.alternatives`; the anchor's row hears nothing, and is not read."""
        return {n: v for n, v in super().alternatives().items() if n != "logits_start"}
