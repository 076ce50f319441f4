"""Schedulers: how much of a drafted block is verified. One file a policy, one interface.

The interface cannot leak (paper section 3.2.2 and appendix A). When sampling, a policy is asked
slot by slot and shown, for slot k, the confidences of slots 1..k only, each of which depends on
nothing but tokens before the slot it judges. Where the rule is deterministic (greedy, or noise that
belongs to the position), any choice is lossless, and all confidences are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from ..calibration.by_temperature import Calibrations
from ..calibration.sts import Calibration
from ..errors import InputError
from ..types import Round
from .speed_profile import SpeedProfile


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

    def learn(self, round_: Round) -> None:
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


@dataclass(frozen=True)
class PairFacts:
    """What is known of a pair, for schedulers that are made from it.

    Attributes:
        profile: measured of the pair and device; None where nothing was measured.
        calibration: the drafter's, one or by sampling temperature; None without any.
        has_confidence: False for a drafter without a confidence head.
    """

    profile: SpeedProfile | None = None
    calibration: Calibration | Calibrations | None = None
    has_confidence: bool = True

    def measured(self, scheduler: str) -> tuple[SpeedProfile, Calibration | Calibrations]:
        """The profile and the calibration, for a scheduler that needs both.

        Raises:
            InputError: one of them is missing, or the profile is narrower than the block.
        """
        profile, calibration = self.profile, self.calibration
        if profile is None or calibration is None:
            found, expected = "no speed profile", "one of this pair and device"
            raise InputError(f"scheduler {scheduler}", found, expected)
        if profile.widths <= calibration.gamma:
            found = f"widths 1 to {profile.widths} of {profile.name}"
            raise InputError("speed profile", found, f"1 to {calibration.gamma + 1} at least")
        return profile, calibration


class SchedulerKind(Scheduler, Protocol):
    """A scheduler's class: what its name looks like, and what makes one of it.

    Attributes:
        USAGE: the name, with a colon and a placeholder where it takes an argument.
        HELP: what is verified, in a few words.
        EXAMPLE: a name that makes one.
        NEEDS_PROFILE: True where it cannot be made without a speed profile.
    """

    USAGE: ClassVar[str]
    HELP: ClassVar[str]
    EXAMPLE: ClassVar[str]
    NEEDS_PROFILE: ClassVar[bool]

    @classmethod
    def make(cls, argument: str, pair: PairFacts) -> Scheduler:
        """A scheduler of this kind.

        Args:
            argument: the text behind the name's colon; "" without one.
            pair: what is known of the pair.

        Raises:
            InputError: an argument that means nothing, or a pair that lacks what it needs.
        """
        ...


def schedule(policy: Policy, confidence: Sequence[float], limit: int, deterministic: bool) -> int:
    """The verify length: slots admitted one after the other, at most `limit`."""
    for slot in range(limit):
        seen = confidence if deterministic else confidence[: slot + 1]
        if not policy.admit(slot, seen):
            return slot
    return limit
