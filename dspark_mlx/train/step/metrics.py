"""Metrics of training: how good the drafts are, by slot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BlockMetrics:
    """Sums over the blocks of steps, or of an evaluation; `+` adds two of them.

    Attributes:
        steps: number of steps.
        loss: sum of the steps' losses.
        rows: six sums for each slot, float32 `[6, gamma]`:
            0. number of supervised slots;
            1. probability of acceptance (sum min(p, q)) of supervised slots;
            2. absolute error of the confidence head against that probability;
            3. number of blocks whose slots are all supervised (equal in every column);
            4. over those blocks, the probability that all slots up to this one are accepted;
            5. number of those blocks whose greedy drafts equal the target's choices up to this
               slot, given the text before them.
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
        """Mean loss of a step."""
        return self.loss / self.steps

    @property
    def acceptance(self) -> np.ndarray:
        """Mean probability of acceptance of each slot, given the text before it, `[gamma]`."""
        return self.rows[1] / np.maximum(self.rows[0], 1)

    @property
    def confidence_error(self) -> float:
        """Mean absolute error of the confidence head; 0 without such a head."""
        return float(self.rows[2].sum() / max(self.rows[0].sum(), 1))

    @property
    def tau_sampled(self) -> float:
        """Expected tokens per round at temperature 1, from the probabilities of acceptance."""
        return float(1 + self.rows[4].sum() / max(self.rows[3, 0], 1))

    @property
    def tau_greedy(self) -> float:
        """Tokens per round of greedy decoding; exact where the texts were decoded greedily."""
        return float(1 + self.rows[5].sum() / max(self.rows[3, 0], 1))
