"""The paper's Algorithm 1: admits slots in order of survival until throughput stops growing."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import mul
from typing import ClassVar

from ..types import Round
from . import PairFacts, Scheduler
from .speed_profile import Costs, SpeedProfile


def prefix_lengths(
    survival: Sequence[Sequence[float]], rounds_per_second: Callable[[int], float]
) -> list[int]:
    """Verify lengths of a batch (paper, Algorithm 1).

    Of all requests' next slots, the one with the highest survival is admitted if tokens per second
    grow; at the first slot that does not make them grow, the search ends. Survival falls along a
    block, so a request's slots are admitted in order, and a slot is considered only after all slots
    before it are admitted.

    Args:
        survival: a_1..a_gamma of every request.
        rounds_per_second: SPS(B) for a round that verifies B rows in all, the anchors included.
    """
    lengths = [0] * len(survival)
    rows = len(survival)
    tokens = float(rows)
    best = tokens * rounds_per_second(rows)
    heap = [(-each[0], request) for request, each in enumerate(survival) if each]
    heapq.heapify(heap)
    while heap:
        negative, request = heapq.heappop(heap)
        tokens, rows = tokens - negative, rows + 1
        throughput = tokens * rounds_per_second(rows)
        if throughput <= best:
            break
        best = throughput
        lengths[request] += 1
        if lengths[request] < len(survival[request]):
            heapq.heappush(heap, (-survival[request][lengths[request]], request))
    return lengths


class PrefixScheduler:
    """Algorithm 1 for one request at a time.

    Args:
        profile: speed profile of the pair on this device.
    """

    USAGE: ClassVar[str] = "prefix"
    HELP: ClassVar[str] = "the paper's Algorithm 1: slot by slot while throughput grows"
    EXAMPLE: ClassVar[str] = "prefix"
    NEEDS_PROFILE: ClassVar[bool] = True

    name = "prefix"
    needs_confidence = True

    def __init__(self, profile: SpeedProfile) -> None:
        self._profile = profile

    @classmethod
    def make(cls, argument: str, pair: PairFacts) -> Scheduler:
        """See `SchedulerKind.make`."""
        profile, _ = pair.measured(cls.name)
        return cls(profile)

    def start(self, gamma: int, temperature: float = 0.0) -> PrefixPolicy:
        """See `Scheduler.start`."""
        return PrefixPolicy(self._profile.sampled if temperature else self._profile)


class PrefixPolicy:
    """The policy of `PrefixScheduler` for one request; it reads no slot after the one it judges."""

    reads_confidence = True

    def __init__(self, profile: SpeedProfile) -> None:
        self._profile = profile
        self._costs: Costs | None = None

    def park(self, context: int, limit: int) -> int:
        """See `Policy.park`; Algorithm 1 always drafts."""
        self._costs = self._profile.at(context)
        return 0

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        """See `Policy.admit`."""
        costs = self._costs
        assert costs is not None
        survival = list(accumulate(seen[: slot + 1], mul))
        (length,) = prefix_lengths(
            [survival], lambda rows: 1 / (costs.draft + costs.verify[rows - 1])
        )
        return length > slot

    def learn(self, round_: Round) -> None:
        """See `Policy.learn`."""
