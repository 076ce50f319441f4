"""Counts over rounds: accepted length, verify rate, acceptance by position.

The rules are those of DeepSpec's evaluator. The accepted length tau is the number of tokens
committed after the prefill's, over the number of rounds. A round that ends with an accepted stop
token has no bonus, and the slots after that token do not count as proposed. Rounds must be whole
(`turns.decode` with `whole`): the round that passes `max_tokens` counts with all it commits.
Cutting or dropping that round would bias tau, because it is more likely to be a long one; stopping
after it does not (Wald's identity).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from ..types import Round


@dataclass(frozen=True)
class Counts:
    """Sums over rounds, without the prefill's.

    Attributes:
        rounds: number of rounds.
        tokens: tokens that they committed.
        drafted, verified, accepted: tokens of all their blocks.
        verified_at: for each slot, the number of blocks that verified it.
        reached_at: for each slot, the blocks that verified it and accepted all slots before it.
        accepted_at: for each slot, the blocks that accepted it and all slots before it.
    """

    rounds: int
    tokens: int
    drafted: int
    verified: int
    accepted: int
    verified_at: tuple[int, ...]
    reached_at: tuple[int, ...]
    accepted_at: tuple[int, ...]

    @property
    def tau(self) -> float:
        """Accepted length, the tokens committed per round; 0 without rounds."""
        return self.tokens / self.rounds if self.rounds else 0.0

    @property
    def verify_rate(self) -> float:
        """Tokens committed over rows verified, the anchor's row included (DeepSpec's measure)."""
        return self.tokens / (self.verified + self.rounds) if self.rounds else 0.0

    @property
    def survival(self) -> tuple[float | None, ...]:
        """For each slot, the share of the blocks that verified it which accepted it.

        It is None where no block verified the slot.
        """
        return _shares(self.accepted_at, self.verified_at)

    @property
    def conditional(self) -> tuple[float | None, ...]:
        """For each slot, the share of the blocks that reached it which accepted it.

        A block reaches a slot when it accepted all slots before it (the paper's figure 2). The
        share is None where no block reached the slot.
        """
        return _shares(self.accepted_at, self.reached_at)


def count(rounds: Iterable[Round], gamma: int, stop_tokens: Collection[int]) -> Counts:
    """The counts of rounds.

    Args:
        rounds: whole rounds; prefills are left out.
        gamma: slots of a block.
        stop_tokens: ids that end a text.
    """
    drafting = [each for each in rounds if not each.prefill]
    verified = [_verified(each, stop_tokens) for each in drafting]
    accepted = [each.accepted for each in drafting]
    slots = np.arange(gamma)
    verifies = np.array(verified, dtype=np.int64)[:, None] > slots
    reaches = verifies & (np.array(accepted, dtype=np.int64)[:, None] >= slots)
    accepts = np.array(accepted, dtype=np.int64)[:, None] > slots
    return Counts(
        rounds=len(drafting),
        tokens=sum(len(each.tokens) for each in drafting),
        drafted=sum(each.drafted for each in drafting),
        verified=sum(verified),
        accepted=sum(accepted),
        verified_at=tuple(verifies.sum(axis=0).tolist()),
        reached_at=tuple(reaches.sum(axis=0).tolist()),
        accepted_at=tuple(accepts.sum(axis=0).tolist()),
    )


def ended_inside(round_: Round, stop_tokens: Collection[int]) -> bool:
    """Whether an accepted draft ended the text, so that the slots after it were not judged."""
    return round_.accepted == len(round_.tokens) and round_.tokens[-1] in stop_tokens


def _verified(round_: Round, stop_tokens: Collection[int]) -> int:
    return round_.accepted if ended_inside(round_, stop_tokens) else round_.scheduled


def _shares(part: tuple[int, ...], whole: tuple[int, ...]) -> tuple[float | None, ...]:
    return tuple(a / b if b else None for a, b in zip(part, whole, strict=True))
