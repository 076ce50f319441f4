"""The engine that all requests share, and the state of one request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from ..drafters.base import Drafter, DrafterContext
from ..errors import InputError
from ..reuse.kept import KeptPrompts
from ..sampling import Position, Sampler
from ..sampling.packing import Packed
from ..schedulers import LearningPolicy, Policy, Scheduler
from ..schedulers.speed_profile import SpeedProfile
from ..targets.rollback import Rollback
from ..targets.tap import Target
from .timer import RoundTimer


@dataclass(frozen=True)
class Engine:
    """The target, drafter and scheduler that all requests share.

    Attributes:
        target: the model that verifies every token.
        drafter: the drafter; None for plain decoding.
        scheduler: chooses how much of a block is verified.
        profile: speed profile of the pair on this device, by which verify forwards are padded to
            the cheapest width; None for no padding.
        kept: prompts that need not be read again; None where none are kept.
    """

    target: Target
    drafter: Drafter | None
    scheduler: Scheduler
    profile: SpeedProfile | None = None
    kept: KeptPrompts | None = None

    def rows(self, wanted: int, context: int) -> int:
        """The cheapest width of a verify forward over at least `wanted` rows, at a cache length."""
        if self.profile is None or wanted > self.profile.widths:
            return wanted
        return self.profile.at(context).rows[wanted - 1]


@dataclass(frozen=True)
class Speculation:
    """A drafter and its context of one request.

    Attributes:
        drafter: proposes the blocks.
        context: the drafter's features of the request's committed tokens.
    """

    drafter: Drafter
    context: DrafterContext

    @property
    def gamma(self) -> int:
        """Tokens of a block."""
        return self.drafter.config.gamma

    @classmethod
    def start(cls, engine: Engine, prompt: list[int], temperature: float) -> Speculation | None:
        """The speculation of a new request; None for an engine without a drafter."""
        drafter = engine.drafter
        return cls(drafter, drafter.new_context(prompt, temperature)) if drafter else None


@dataclass(frozen=True)
class VerifyForward:
    """A verify forward that was started and is not committed yet.

    Attributes:
        position: position of its first row, the anchor.
        tokens: tokens of its rows, int32 `[rows]`; rows after the scheduled ones are padding.
        last: the last token that it commits, which is the next anchor, int32 `[1]`.
        taps: the rows' features, one `[rows, hidden]` per tap.
        packed: the round's results, to be read by the host.
        rollback: cuts the caches back to the rows that are accepted.
    """

    position: Position
    tokens: mx.array
    last: mx.array
    taps: list[mx.array]
    packed: Packed
    rollback: Rollback


@dataclass
class State:
    """The state of one request between two rounds.

    Attributes:
        caches: the target's caches, which hold every committed token but the anchor.
        speculation: the drafter and its context; None for plain decoding.
        policy: the scheduler's policy for this request.
        sampler: the request's rule for choosing tokens.
        anchor_index: number of tokens before the anchor, the prompt's included.
        anchor: the newest committed token, int32 `[1]`.
        prefix: all tokens up to the anchor, int32; None when no logits processor reads them.
        parked: number of plain steps before the policy is asked again.
        next_step: the next plain step, if it was started before the last one was read; else None.
        timer: the timer of the current round.
    """

    caches: list[Any]
    speculation: Speculation | None
    policy: Policy
    sampler: Sampler
    anchor_index: int = 0
    anchor: mx.array = field(default_factory=lambda: mx.zeros((1,), mx.int32))
    prefix: mx.array | None = None
    parked: int = 0
    next_step: VerifyForward | None = None
    timer: RoundTimer = field(default_factory=RoundTimer)

    @property
    def position(self) -> Position:
        """Position of the next forward's first row, the anchor."""
        return Position(self.anchor_index, self.prefix)

    def close(self) -> None:
        """Wait for `next_step`, so that nothing of the request still runs; keep what it taught."""
        next_step, self.next_step = self.next_step, None
        if next_step is not None:
            mx.eval(next_step.packed.array)
        if isinstance(self.policy, LearningPolicy):
            self.policy.close()


def make_engine(
    target: Target,
    drafter: Drafter | None,
    scheduler: Scheduler,
    profile: SpeedProfile | None = None,
) -> Engine:
    """An engine whose scheduler is checked against its drafter; arguments as for `Engine`.

    Raises:
        InputError: the scheduler needs confidences and the drafter has no confidence head.
    """
    if drafter is not None and scheduler.needs_confidence and not drafter.config.has_confidence:
        found = "a drafter without a confidence head"
        raise InputError(f"scheduler {scheduler.name}", found, "one with a confidence head")
    return Engine(target, drafter, scheduler, profile)
