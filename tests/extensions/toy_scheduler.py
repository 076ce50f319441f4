"""A scheduler in one file, as docs/extending.md describes it: every other round, a fixed length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from dspark_mlx.errors import InputError
from dspark_mlx.schedulers import PairFacts, Policy, Scheduler
from dspark_mlx.schedulers.make import SCHEDULERS
from dspark_mlx.schedulers.stateless import number_after_colon
from dspark_mlx.types import Round


class ToyScheduler:
    """Admits the first N slots in every other round, and all of them in the others."""

    USAGE: ClassVar[str] = "toy:N"
    HELP: ClassVar[str] = "the first N tokens in every other round"
    EXAMPLE: ClassVar[str] = "toy:2"
    NEEDS_PROFILE: ClassVar[bool] = False

    needs_confidence = False

    def __init__(self, length: int) -> None:
        self.name = f"toy:{length}"
        self._length = length

    @classmethod
    def make(cls, argument: str, pair: PairFacts) -> Scheduler:
        expected = "a whole number of slots, 0 or more"
        length = number_after_colon(cls, argument, expected)
        if length < 0 or length != int(length):
            raise InputError("scheduler toy", argument, expected)
        return cls(int(length))

    def start(self, gamma: int, temperature: float = 0.0) -> Policy:
        return ToyPolicy(self._length)


class ToyPolicy:
    """One request of `ToyScheduler`."""

    reads_confidence = False

    def __init__(self, length: int) -> None:
        self._length = length
        self._rounds = 0

    def park(self, context: int, limit: int) -> int:
        return 0

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        return self._rounds % 2 == 1 or slot < self._length

    def learn(self, done: Round) -> None:
        self._rounds += 1


SCHEDULERS["toy"] = ToyScheduler
