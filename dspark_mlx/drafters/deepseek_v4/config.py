"""The canonical configuration of DeepSeek V4's and V4.1's DSpark head, and its tensors' shapes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ...checkpoint.base_config import MAX_BLOCK
from ...checkpoint.number_ranges import check_within
from ..heads import head_matrices
from ..heads.base import HeadSizes
from ..heads.confidence import confidence_matrices
from .layers_config import LayersConfig

_HEAD, _CONFIDENCE = "vanilla", "hidden+markov"


@dataclass(frozen=True, kw_only=True)
class DeepseekV4Config(LayersConfig):
    """DeepSeek V4's embedded head.

    Attributes:
        block_size: rows of a block, the anchor's included, which all give logits.
        mask_token_id: id that fills the rows after the anchor, the release's noise token.
        head_rank: rank of the Markov head's embedding.
    """

    METHOD: ClassVar[str] = "deepseek_v4"
    EXAMPLE: ClassVar[dict[str, Any]] = LayersConfig.LAYERS_EXAMPLE | {
        "block_size": 4,
        "mask_token_id": 0,
        "head_rank": 8,
    }

    block_size: int
    mask_token_id: int
    head_rank: int

    @property
    def gamma(self) -> int:
        """Tokens proposed per round."""
        return self.block_size

    @property
    def has_confidence(self) -> bool:
        """True: every such head predicts how likely its tokens are to be accepted."""
        return True

    @property
    def summary(self) -> str:
        """A description of the drafter in a few words."""
        version = "4.1" if self.late_mixing else "4"
        return f"DeepSeek V{version} head, {self.num_layers} stages, block of {self.block_size}"

    def matrix_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `CanonicalConfig.matrix_shapes`."""
        sizes = HeadSizes(self.head_rank, self.hidden_size, self.vocab_size, self.output_size)
        fc = (self.hidden_size, len(self.taps) * self.target_hidden_size)
        heads = head_matrices(_HEAD, sizes) | confidence_matrices(_CONFIDENCE, sizes)
        return {"fc": fc} | super().matrix_shapes() | heads

    def vector_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `CanonicalConfig.vector_shapes`."""
        hidden = (self.hidden_size,)
        norms = {"hidden_norm.weight": hidden, "norm.weight": hidden}
        return norms | super().vector_shapes()

    def _check(self, where: Path | str) -> None:
        self._check_positive(where, "head_rank")
        check_within(where, "block_size", self.block_size, 1, MAX_BLOCK)
        super()._check(where)
        self._check_token(where, "mask_token_id")
