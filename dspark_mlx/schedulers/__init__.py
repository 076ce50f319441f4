"""Schedulers: how much of a drafted block is verified. One file a policy, one interface.

The interface cannot leak (paper section 3.2.2 and appendix A). When sampling, a policy is asked
slot by slot and shown, for slot k, the confidences of slots 1..k only, each of which depends on
nothing but tokens before the slot it judges. Where the rule is deterministic (greedy, or noise that
belongs to the position), any choice is lossless, and all confidences are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..types import Round


class Policy(Protocol):
    """One request's scheduling, from its first round to its last.

    Attributes:
        reads_confidence: False when `admit` ignores the confidences; the round then needs no host
            synchronisation before the verify forward.
    """

    @property
    def reads_confidence(self) -> bool:
        """See above."""
        ...

    def park(self, context: int, limit: int) -> int:
        """How many plain steps to make before it is asked again; 0 drafts now.

        Args:
            context: committed tokens before the anchor.
            limit: slots that a round may verify at most, at least 1.
        """
        ...

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        """Whether to verify a slot whose predecessors are all verified.

        Args:
            slot: from 0.
            seen: confidences of the slots whose confidences may be used: of the first `slot + 1`
                when sampling, of the whole block when deterministic; empty without a confidence
                head.
        """
        ...

    def learn(self, done: Round) -> None:
        """Take in a finished round, drafted or plain."""
        ...


class Scheduler(Protocol):
    """A verification policy's settings, shared by all requests.

    Attributes:
        name: as `make_scheduler` takes it.
        needs_confidence: True when it cannot do without a confidence head.
    """

    @property
    def name(self) -> str:
        """See above."""
        ...

    @property
    def needs_confidence(self) -> bool:
        """See above."""
        ...

    def start(self, gamma: int, temperature: float = 0.0) -> Policy:
        """The policy of a new request.

        Args:
            gamma: slots of its blocks.
            temperature: that it samples at, 0 where greedy. Sampling costs time at every row, and
                the hotter it is, the fewer drafts survive.
        """
        ...


def schedule(policy: Policy, confidence: Sequence[float], limit: int, deterministic: bool) -> int:
    """The verify length: slots admitted one after the other, at most `limit`."""
    for slot in range(limit):
        seen = confidence if deterministic else confidence[: slot + 1]
        if not policy.admit(slot, seen):
            return slot
    return limit
