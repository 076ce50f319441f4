"""What rounds add up to: accepted length, verify rate, acceptance by position.

As DeepSpec's evaluator counts them. The accepted length tau is the tokens committed after the
prefill's over the rounds; a round that an accepted stop token ends has no bonus, and nothing behind
that token counts as proposed. Rounds must be whole (`interleaved.decode`): the round that passes
`max_tokens` counts with all it commits. Cutting or dropping it would bias tau, long rounds being
likelier to be that one; stopping after it does not (Wald's identity).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from ..types import Round


@dataclass(frozen=True)
class Counts:
    """Sums over rounds, the prefill's left out.

    Attributes:
        rounds, tokens: how many, and what they committed.
        drafted, verified, accepted: tokens of their blocks.
        verified_at: blocks that verified each slot.
        reached_at: those of them that accepted all slots before it.
        accepted_at: those of them that accepted it too.
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
        """Accepted length: tokens committed a round; 0 without rounds."""
        return self.tokens / self.rounds if self.rounds else 0.0

    @property
    def verify_rate(self) -> float:
        """DeepSpec's: tokens committed over rows verified, the anchor's row included."""
        return self.tokens / (self.verified + self.rounds) if self.rounds else 0.0

    @property
    def survival(self) -> tuple[float | None, ...]:
        """Share of the blocks verifying a slot that accept it; None where no block does."""
        return _shares(self.accepted_at, self.verified_at)

    @property
    def conditional(self) -> tuple[float | None, ...]:
        """The same of the blocks that accepted all slots before it (the paper's figure 2)."""
        return _shares(self.accepted_at, self.reached_at)


def count(rounds: Iterable[Round], gamma: int, stop_tokens: Collection[int]) -> Counts:
    """Add rounds up.

    Args:
        rounds: whole ones; prefills are left out.
        gamma: slots of a block.
        stop_tokens: ids that ended texts.
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
    """Whether an accepted draft ended the text, so that nothing is known of what follows it."""
    return round_.accepted == len(round_.tokens) and round_.tokens[-1] in stop_tokens


def _verified(round_: Round, stop_tokens: Collection[int]) -> int:
    return round_.accepted if ended_inside(round_, stop_tokens) else round_.scheduled


def _shares(part: tuple[int, ...], whole: tuple[int, ...]) -> tuple[float | None, ...]:
    return tuple(a / b if b else None for a, b in zip(part, whole, strict=True))
