"""What is watched while training: how good the drafts are, by slot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BlockMetrics:
    """Sums over the blocks of steps, or of an evaluation; add them up with `+`.

    Attributes:
        steps: how many were added.
        loss: sum of their losses.
        rows: `[6, gamma]`: supervised slots; their chances of acceptance (sum min(p, q)); how far
            the confidence head is from them; whole blocks (in every place); the chance that all
            slots up to this one are accepted, over whole blocks; and whole blocks whose greedy
            drafts equal the target's choices up to this slot, given the text before them.
    """

    steps: int
    loss: float
    rows: np.ndarray

    def __add__(self, other: BlockMetrics) -> BlockMetrics:
        return BlockMetrics(
            self.steps + other.steps, self.loss + other.loss, self.rows + other.rows
        )

    @property
    def mean_loss(self) -> float:
        """Loss of a step."""
        return self.loss / self.steps

    @property
    def acceptance(self) -> np.ndarray:
        """Chance of acceptance by slot, given the prefix, `[gamma]`."""
        return self.rows[1] / np.maximum(self.rows[0], 1)

    @property
    def confidence_error(self) -> float:
        """Mean absolute error of the confidence head; 0 without one."""
        return float(self.rows[2].sum() / max(self.rows[0].sum(), 1))

    @property
    def tau_sampled(self) -> float:
        """Tokens a round at temperature 1, from the chances of acceptance."""
        return float(1 + self.rows[4].sum() / max(self.rows[3, 0], 1))

    @property
    def tau_greedy(self) -> float:
        """Tokens a round when decoding greedily; exact where the texts are greedy themselves."""
        return float(1 + self.rows[5].sum() / max(self.rows[3, 0], 1))
