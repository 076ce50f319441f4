"""The canonical configuration of Eagle3 drafters, and their tensors' shapes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from ...checkpoint.layer_shapes import layer_matrices, layer_vectors, shared_matrices
from ...checkpoint.number_ranges import LARGEST
from ..chain_config import STATES, ChainConfig

TAP_NORMS = ("none", "each", "all")
INPUT_NORM = "input_norm.weight"


def tap_norm(tap: int) -> str:
    """Name of the norm of one tap, by its place among the taps."""
    return f"fc_norm.{tap}.weight"


@dataclass(frozen=True, kw_only=True)
class Eagle3Config(ChainConfig):
    """An Eagle3 drafter: one layer, run once a token (DeepSpec's and EAGLE's draft models).

    Attributes:
        steps: tokens proposed per round (DeepSpec's `ttt_length`).
        window: how many of the newest rows a row attends to, itself included; 0 for all.
        tap_norms: what is normed before the projection of the taps: "none", "each" tap by itself,
            or "all" of them as one row.
        residual: what is added to the attention's output: the feature as it is ("raw"), or normed
            as the attention reads it ("normed").
        feedback: what takes the next feature's place: the layer's output ("raw"), or what is read
            out of it ("normed").
    """

    METHOD: ClassVar[str] = "eagle3"
    EXAMPLE: ClassVar[dict[str, Any]] = {"steps": 4}

    steps: int
    window: int = 0
    tap_norms: str = "none"
    residual: str = "raw"
    feedback: str = "raw"

    @property
    def depth(self) -> int:
        """See `CanonicalConfig.depth`."""
        return 1

    @property
    def summary(self) -> str:
        """A description of the drafter in a few words."""
        return f"Eagle3, 1 layer, {self.steps} steps"

    @property
    def attended(self) -> tuple[int, ...]:
        """See `CanonicalConfig.attended`."""
        return (self.window,) if self.window else ()

    def with_window(self, window: int) -> Eagle3Config:
        """See `CanonicalConfig.with_window`."""
        return replace(self, window=min(self.window or window, window))

    def _check(self, where: Path | str) -> None:
        self._check_within(where, "window", 0, LARGEST)
        self._check_known(where, tap_norms=TAP_NORMS, residual=STATES, feedback=STATES)
        super()._check(where)

    def matrix_shapes(self) -> dict[str, tuple[int, int]]:
        """See `CanonicalConfig.matrix_shapes`."""
        # The layer reads a token's embedding and a feature side by side.
        return shared_matrices(self) | layer_matrices(self, "layers.0", 2 * self.hidden_size)

    def vector_shapes(self) -> dict[str, tuple[int]]:
        """See `CanonicalConfig.vector_shapes`."""
        hidden = (self.hidden_size,)
        norms = {"norm.weight": hidden, "layers.0.hidden_norm.weight": hidden}
        if self.tap_norms == "all":
            norms[INPUT_NORM] = (len(self.taps) * self.target_hidden_size,)
        if self.tap_norms == "each":
            norms |= {tap_norm(i): (self.target_hidden_size,) for i in range(len(self.taps))}
        return norms | layer_vectors(self, "layers.0")

    def alternatives(self) -> dict[str, tuple[Any, ...]]:
        """See `CanonicalConfig.alternatives`."""
        return {"residual": STATES, "feedback": STATES, **super().alternatives()}
