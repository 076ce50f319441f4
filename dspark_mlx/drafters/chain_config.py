"""What the configurations of drafters that run once for each token of a block share."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from ..checkpoint.base_config import MAX_BLOCK, CanonicalConfig
from ..checkpoint.number_ranges import check_within

STATES = ("raw", "normed")
"""Which of a model's states is meant: as its last layer gives it, or after its final norm."""


class ChainConfig(CanonicalConfig):
    """A drafter that runs once for each token of a block.

    Attributes:
        steps: tokens proposed per round. The methods declare this field among their own, since
            config.json has the fields in the order of their declaration.
    """

    PROPOSES: ClassVar[str] = "chains"

    steps: int

    @property
    def gamma(self) -> int:
        """Tokens proposed per round."""
        return self.steps

    def _check(self, where: Path | str) -> None:
        check_within(where, "steps", self.steps, 1, MAX_BLOCK)
        super()._check(where)
