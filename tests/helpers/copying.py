"""A policy that copies whenever it can, which finds every fault that a choice could hide."""

from __future__ import annotations

from collections.abc import Sequence

from dspark_mlx.types import Round


class AlwaysCopies:
    """A scheduler and policy: copies where there is something to copy, else drafts all.

    Args:
        every: copies in one of so many rounds, or fewer.

    Attributes:
        rounds: all that it was shown.
    """

    name, needs_confidence, reads_confidence = "always copies", False, False

    def __init__(self, every: int = 1) -> None:
        self.rounds: list[Round] = []
        self._every = every

    def start(self, gamma: int, temperature: float = 0.0) -> AlwaysCopies:
        return self

    def copy_length(self, context: int, survival: Sequence[float], limit: int) -> int:
        assert all(0 < chance < 1 for chance in survival)
        newest = self.rounds[1 - self._every :] if self._every > 1 else []
        waits = any(done.proposer == "lookup" for done in newest)
        return 0 if waits else min(len(survival), limit)

    def park(self, context: int, limit: int) -> int:
        return 0

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        return True

    def learn(self, round_: Round) -> None:
        self.rounds.append(round_)
