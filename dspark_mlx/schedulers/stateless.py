"""What the schedulers share that learn nothing: each is its own policy, for every request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ..errors import InputError
from ..types import Round
from . import Policy

T = TypeVar("T")


class Stateless:
    """Always drafts and learns nothing; a subclass says what it admits."""

    needs_confidence = False
    reads_confidence = False

    def start(self, gamma: int, temperature: float = 0.0) -> Policy:
        """See `Scheduler.start`."""
        return self

    def park(self, context: int, limit: int) -> int:
        """See `Policy.park`."""
        return 0

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        """See `Policy.admit`."""
        raise NotImplementedError

    def learn(self, done: Round) -> None:
        """See `Policy.learn`."""


def parse_argument(
    scheduler: str,
    argument: str,
    convert: Callable[[str], T],
    *,
    number: str,
    of: str,
    example: str,
) -> T:
    """The number after a scheduler's colon.

    Args:
        scheduler: its name before the colon.
        argument: the text after it.
        convert: `int` or `float`.
        number: what is missing where there is no argument.
        of: what is expected.
        example: an argument that is one.

    Raises:
        InputError: no such number.
    """
    try:
        return convert(argument)
    except ValueError as error:
        found = repr(argument) if argument else f"no {number}"
        hint = f"For example {scheduler}:{example}."
        raise InputError(f"scheduler {scheduler}", found, of, hint) from error
