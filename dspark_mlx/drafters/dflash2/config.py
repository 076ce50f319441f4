"""The canonical configuration of DFlash 2 drafters, and their tensors' shapes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ...checkpoint.number_ranges import check_within
from ...errors import InputError
from ..convolution import BASE, KERNEL, SIDES, SUBLAYERS
from ..dspark.config import BlockConfig
from .selector import PREDECESSOR, PROJECTION, SUCCESSOR


@dataclass(frozen=True, kw_only=True)
class DFlash2Config(BlockConfig):
    """A DFlash 2 drafter (z-lab's dflash).

    Attributes:
        conv_kernel_size: taps of the convolutions, the row's own included; 0 without convolutions.
        conv_group_size: channels that share a dynamic kernel; 0 without convolutions.
        selector_rank: rank of the selector's codebooks.
        selector_top_k: the likeliest tokens of a slot that the selector chooses from.
    """

    METHOD: ClassVar[str] = "dflash2"
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "num_layers": 1,
        "block_size": 5,
        "logits_start": 1,
        "mask_token_id": 0,
        "conv_kernel_size": 2,
        "conv_group_size": 16,
        "selector_rank": 8,
        "selector_top_k": 3,
    }

    conv_kernel_size: int
    conv_group_size: int
    selector_rank: int
    selector_top_k: int

    @property
    def summary(self) -> str:
        """A description of the drafter in a few words."""
        layers = f"DFlash 2, {self.num_layers} layers, block of {self.block_size}"
        return f"{layers}, selector of {self.selector_top_k}"

    @property
    def has_convolutions(self) -> bool:
        """Whether the sublayers are convolved."""
        return self.conv_kernel_size > 0

    @property
    def convolved_rows(self) -> int:
        """See `CanonicalConfig.convolved_rows`."""
        return self.block_size if self.has_convolutions else 0

    def matrix_shapes(self) -> dict[str, tuple[int, int]]:
        """See `CanonicalConfig.matrix_shapes`."""
        shapes = super().matrix_shapes()
        if self.has_convolutions:
            groups = self.hidden_size // self.conv_group_size
            rows = SIDES * self.conv_kernel_size * groups
            for name in self._convolutions():
                shapes[f"{name}.{KERNEL}"] = (rows, self.hidden_size)
        shapes[PREDECESSOR] = shapes[SUCCESSOR] = (self.vocab_size, self.selector_rank)
        shapes[PROJECTION] = (self.selector_rank, self.hidden_size)
        return shapes

    def vector_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `CanonicalConfig.vector_shapes`."""
        shapes = super().vector_shapes()
        if self.has_convolutions:
            kernel = (SIDES, self.conv_kernel_size, self.hidden_size)
            shapes |= {f"{name}.{BASE}": kernel for name in self._convolutions()}
        return shapes

    def _convolutions(self) -> list[str]:
        return [f"layers.{i}.{name}" for i in range(self.num_layers) for name in SUBLAYERS]

    def _check(self, where: Path | str) -> None:
        check_within(where, "conv_kernel_size", self.conv_kernel_size, 0, self.block_size)
        check_within(where, "conv_group_size", self.conv_group_size, 0, self.hidden_size)
        if self.has_convolutions != (self.conv_group_size > 0) or (
            self.has_convolutions and self.hidden_size % self.conv_group_size
        ):
            found = f"conv_kernel_size {self.conv_kernel_size}, "
            found += f"conv_group_size {self.conv_group_size}"
            expected = f"both 0, or groups that divide the hidden size of {self.hidden_size}"
            raise InputError(where, found, expected)
        self._check_positive(where, "selector_rank")
        check_within(where, "selector_top_k", self.selector_top_k, 1, self.vocab_size)
        super()._check(where)
        if self.draft_vocab_size:
            found = f"draft_vocab_size {self.draft_vocab_size}"
            raise InputError(where, found, "0: DFlash 2 drafters propose from the whole vocabulary")
