"""What the decode loop works with: the engine that requests share, and a request's own state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from ..drafters.base import Drafter, DrafterContext
from ..errors import InputError
from ..sampling import Position, Sampler
from ..sampling.packing import Packed
from ..schedulers import Policy, Scheduler
from ..schedulers.speed_profile import SpeedProfile
from ..targets.rollback import Rollback
from ..targets.tap import Target
from .timer import RoundTimer


@dataclass(frozen=True)
class Engine:
    """What all requests share.

    Attributes:
        target: verifies every token.
        drafter: None decodes plainly.
        scheduler: decides how much of a block is verified.
        profile: of the pair and device; a verify forward then runs as many rows as is cheapest.
    """

    target: Target
    drafter: Drafter | None
    scheduler: Scheduler
    profile: SpeedProfile | None = None

    def rows(self, wanted: int, context: int) -> int:
        """Rows to run a verify forward of `wanted` rows with, at a cache length."""
        if self.profile is None or wanted > self.profile.widths:
            return wanted
        return self.profile.at(context).rows[wanted - 1]


@dataclass(frozen=True)
class Speculation:
    """A drafter at work for one request.

    Attributes:
        drafter: proposes the blocks.
        context: what it keeps of the request's committed tokens.
    """

    drafter: Drafter
    context: DrafterContext

    @property
    def gamma(self) -> int:
        """Tokens of a block."""
        return self.drafter.config.gamma

    @classmethod
    def start(cls, engine: Engine, prompt: list[int], temperature: float) -> Speculation | None:
        """Of a new request; None for an engine without a drafter."""
        drafter = engine.drafter
        return cls(drafter, drafter.new_context(prompt, temperature)) if drafter else None


@dataclass(frozen=True)
class VerifyForward:
    """A verify forward under way.

    Attributes:
        position: of its first row.
        tokens: of its rows, int32 `[rows]`; those past the scheduled ones are padding and mean
            nothing.
        last: the last token it commits, int32 `[1]`: the next anchor.
        taps: the rows' features, one array a tap.
        packed: what the host will read of it.
        rollback: cuts it back to the rows that are accepted.
    """

    position: Position
    tokens: mx.array
    last: mx.array
    taps: list[mx.array]
    packed: Packed
    rollback: Rollback


@dataclass
class State:
    """One request between two rounds.

    Attributes:
        caches: the target's, holding every committed token but the anchor.
        speculation: the drafter and its context; None decodes plainly.
        policy: the scheduler's, for this request.
        sampler: its rule for choosing tokens.
        position: the anchor's, which is the committed tokens before it.
        anchor: the newest committed token, int32 `[1]`.
        prefix: all tokens up to the anchor; None where no logits processor reads them.
        parked: plain steps to make before the policy is asked again.
        next_step: the next plain step, launched before the last one was read.
        timer: of the round under way.
    """

    caches: list[Any]
    speculation: Speculation | None
    policy: Policy
    sampler: Sampler
    position: int = 0
    anchor: mx.array = field(default_factory=lambda: mx.zeros((1,), mx.int32))
    prefix: mx.array | None = None
    parked: int = 0
    next_step: VerifyForward | None = None
    timer: RoundTimer = field(default_factory=RoundTimer)

    @property
    def place(self) -> Position:
        """Where the next forward stands."""
        return Position(self.position, self.prefix)

    def close(self) -> None:
        """Wait for what was launched ahead: nothing of a request runs on after it."""
        next_step, self.next_step = self.next_step, None
        if next_step is not None:
            mx.eval(next_step.packed.array)


def make_engine(
    target: Target,
    drafter: Drafter | None,
    scheduler: Scheduler,
    profile: SpeedProfile | None = None,
) -> Engine:
    """An engine whose parts fit each other.

    Raises:
        InputError: the scheduler reads confidences that the drafter does not have.
    """
    if drafter is not None and scheduler.needs_confidence and not drafter.config.has_confidence:
        found = "a drafter without a confidence head"
        raise InputError(f"scheduler {scheduler.name}", found, "one with a confidence head")
    return Engine(target, drafter, scheduler, profile)
