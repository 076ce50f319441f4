"""Schedulers, which choose how much of a drafted block is verified: their interface.

A policy cannot see the token that it judges (paper, section 3.2.2 and appendix A). When sampling,
it is asked slot by slot, and for slot k gets only the confidences of slots 1..k, each of which
depends only on tokens before its slot. When the sampler is deterministic (greedy, or with noise
fixed by the position), every choice is lossless, and the policy gets the whole block's confidences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from ..calibration.by_temperature import Calibrations
from ..calibration.sts import Calibration
from ..errors import InputError
from ..types import Decision, Round
from .speed_profile import SpeedProfile


class Policy(Protocol):
    """Chooses the verify length of one request's rounds."""

    @property
    def reads_confidence(self) -> bool:
        """False when `admit` ignores confidences, so that no round waits for them."""
        ...

    def park(self, context: int, limit: int) -> int:
        """The number of plain steps before the policy is asked again; 0 to draft now.

        Args:
            context: committed tokens before the anchor.
            limit: the most slots that the round may verify, at least 1.
        """
        ...

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        """Whether to verify a slot, given that all slots before it are verified.

        Args:
            slot: the slot's index from 0.
            seen: the confidences that may be used: those of the first `slot + 1` slots when
                sampling, those of the whole block when deterministic; empty when
                `reads_confidence` is False.
        """
        ...

    def learn(self, round_: Round) -> None:
        """Update the policy with a finished round, drafted or plain."""
        ...


@runtime_checkable
class CopyingPolicy(Policy, Protocol):
    """A policy that may verify copies of earlier text in place of a draft."""

    def copy_length(self, context: int, survival: Sequence[float], limit: int) -> int:
        """How many tokens of a copy the next round verifies in place of a draft; 0 for none.

        It is asked before every round. Where a plain step runs already, the copy waits for it, and
        the policy is asked again.

        Args:
            context: committed tokens before the anchor.
            survival: chances that the target accepts the copy's first k tokens, for each k; empty
                where there is nothing to copy.
            limit: the most tokens that the round may verify, at least 1.
        """
        ...


@runtime_checkable
class LearningPolicy(Policy, Protocol):
    """A policy that says why, and whose knowledge outlives its request."""

    @property
    def decision(self) -> Decision | None:
        """Why the round that was learned last is as it is."""
        ...

    def close(self) -> None:
        """Keep what outlives the request, which has ended."""
        ...


class Scheduler(Protocol):
    """Makes a policy for each request from settings that all requests share."""

    @property
    def name(self) -> str:
        """The name that `make_scheduler` takes, with its argument."""
        ...

    @property
    def needs_confidence(self) -> bool:
        """True for a scheduler that requires a drafter with a confidence head."""
        ...

    def start(self, gamma: int, temperature: float = 0.0) -> Policy:
        """The policy of a new request.

        Args:
            gamma: slots of the request's blocks; 0 for an engine without a drafter.
            temperature: the request's sampling temperature, 0 for greedy. Sampling costs time at
                every row, and the higher the temperature, the fewer drafts survive.
        """
        ...


@dataclass(frozen=True)
class PairFacts:
    """Facts of a target and its drafter that schedulers are made from.

    Attributes:
        profile: speed profile of this pair on this device; None when it was not measured.
        calibration: the drafter's calibration, or its calibrations by sampling temperature; None
            for a drafter without calibration.
        has_confidence: False for a drafter without a confidence head.
        memory: file of what the pair's requests have taught; None to keep nothing.
    """

    profile: SpeedProfile | None = None
    calibration: Calibration | Calibrations | None = None
    has_confidence: bool = True
    memory: Path | None = None

    def measured(self, scheduler: str) -> tuple[SpeedProfile, Calibration | Calibrations]:
        """The profile and the calibration, for a scheduler that needs both.

        Raises:
            InputError: one of them is missing, or the profile is narrower than the block.
        """
        profile, calibration = self.profile, self.calibration
        if profile is None or calibration is None:
            missing = "speed profile" if profile is None else "calibration"
            expected = f"a {missing} of this pair"
            raise InputError(f"scheduler {scheduler}", f"no {missing}", expected)
        if profile.widths <= calibration.gamma:
            found = f"widths 1 to {profile.widths} of {profile.name}"
            raise InputError("speed profile", found, f"1 to {calibration.gamma + 1} at least")
        return profile, calibration


class SchedulerKind(Scheduler, Protocol):
    """The class of a scheduler, with its name, its help text and how it is made from a name.

    Attributes:
        USAGE: the name; for a scheduler with an argument, with a colon and a placeholder.
        HELP: what the scheduler verifies, in a few words.
        EXAMPLE: a complete name, with an argument if the scheduler takes one.
        NEEDS_PROFILE: True for a scheduler that cannot be made without a speed profile.
    """

    USAGE: ClassVar[str]
    HELP: ClassVar[str]
    EXAMPLE: ClassVar[str]
    NEEDS_PROFILE: ClassVar[bool]

    @classmethod
    def make(cls, argument: str, pair: PairFacts) -> Scheduler:
        """A scheduler of this kind.

        Args:
            argument: the text after the name's colon; "" without a colon.
            pair: facts of the target and its drafter.

        Raises:
            InputError: the argument is not usable, or the pair lacks a profile or a calibration
                that the scheduler needs.
        """
        ...


def schedule(policy: Policy, confidence: Sequence[float], limit: int, deterministic: bool) -> int:
    """The verify length: how many slots the policy admits, asked one by one.

    Args:
        policy: the request's policy.
        confidence: the block's confidences, `[gamma]`; empty when the policy does not read them.
        limit: the most slots to admit.
        deterministic: `Sampler.deterministic`.
    """
    for slot in range(limit):
        seen = confidence if deterministic else confidence[: slot + 1]
        if not policy.admit(slot, seen):
            return slot
    return limit
