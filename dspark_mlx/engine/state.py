"""The engine that all requests share, and the state of one request."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import mlx.core as mx

from ..drafters.base import Drafter, DrafterContext
from ..errors import InputError
from ..lookup.lookup import Lookup
from ..reuse.kept import KeptPrompts
from ..sampling import Position, Sampler
from ..sampling.packing import Packed
from ..schedulers import CopyingPolicy, LearningPolicy, Policy, Scheduler
from ..schedulers.batch import weighs_times
from ..schedulers.batch_times import BatchTimes
from ..schedulers.belief import Belief
from ..schedulers.speed_profile import SpeedProfile
from ..targets.rollback import Rollback
from ..targets.tap import Forward, Target
from ..types import Round


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

    @cached_property
    def batch_times(self) -> BatchTimes | None:
        """What rounds of several requests take, learned by all of them.

        None where blocks are not scheduled by times, see `schedulers.batch.weighs_times`.
        """
        if self.drafter is None or self.profile is None or not weighs_times(self.scheduler):
            return None
        return BatchTimes(self.profile, self.drafter.config.gamma)

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
class Judged:
    """One request's part of a verify forward, judged by its sampler.

    Attributes:
        position: position of its first row, the anchor.
        last: the last token that it commits, which is the next anchor, int32 `[1]`.
        packed: the round's results, to be read by the host.
    """

    position: Position
    last: mx.array
    packed: Packed


@dataclass(frozen=True)
class VerifyForward:
    """A verify forward that was started and is not committed yet.

    Attributes:
        tokens: tokens of its rows, int32 `[rows]`, of a batch `[requests, rows]`; rows after the
            scheduled ones are padding.
        taps: the rows' features, one `[rows, hidden]` per tap, of a batch with its axis in front.
        rollback: cuts the caches back to the rows that are accepted.
        judged: each request's part; None where its sampler failed.
    """

    tokens: mx.array
    taps: list[mx.array]
    rollback: Rollback
    judged: tuple[Judged | None, ...]

    def of(self, indices: Sequence[int]) -> VerifyForward:
        """The part of some requests of a batch, as a batch; the forward has one row of each."""
        taken = mx.array(list(indices))
        taps, judged = [tap[taken] for tap in self.taps], [self.judged[i] for i in indices]
        return replace(self, tokens=self.tokens[taken], taps=taps, judged=tuple(judged))

    def alone(self, index: int) -> VerifyForward:
        """The part of one request of a batch, as the request's own."""
        taps = [tap[index] for tap in self.taps]
        return replace(self, tokens=self.tokens[index], taps=taps, judged=(self.judged[index],))


@dataclass(eq=False)
class State:
    """The state of one request between two rounds.

    Attributes:
        caches: the target's caches, which hold every committed token but the anchor; empty while
            they are part of a batch's.
        speculation: the drafter and its context; None for plain decoding.
        policy: the scheduler's policy for this request.
        sampler: the request's rule for choosing tokens.
        remaining: number of tokens to commit at most.
        stop: ids of tokens that end the request.
        target: whose caches they are.
        learning: the policy, if it says why and its knowledge outlives the request.
        ended: whether its last round was made.
        anchor_index: number of tokens before the anchor, the prompt's included.
        anchor: the newest committed token, int32 `[1]`.
        prefix: all tokens up to the anchor, int32; None when no logits processor reads them.
        parked: number of plain steps before the policy is asked again.
        next_step: the next plain step, if it was started before the last one was read; else None.
        belief: how far its drafts are believed where a batch is scheduled as a whole; else None.
        error: what its own code raised, or a round that it was part of, whose rows may be in its
            caches by half; it has no further rounds then, and nothing of it is kept.
        isolates: what is kept as its `error` while others go on; all else that is raised ends the
            round of all, and is raised.
        forward: the target's forward for this request; None for the model's own call.
        lookup: what may be copied; None where the policy or the request copies nothing.
        copy: the tokens that the next round proposes instead of a draft; empty without a copy.
        copy_waits: whether a copy waits for the plain step that runs.
        tokens: the prompt and all committed tokens.
    """

    caches: list[Any]
    speculation: Speculation | None
    policy: Policy
    sampler: Sampler
    remaining: int
    stop: frozenset[int]
    target: Target
    learning: LearningPolicy | None = None
    ended: bool = False
    anchor_index: int = 0
    anchor: mx.array = field(default_factory=lambda: mx.zeros((1,), mx.int32))
    prefix: mx.array | None = None
    parked: int = 0
    next_step: VerifyForward | None = None
    belief: Belief | None = None
    error: BaseException | None = None
    isolates: type[BaseException] = Exception
    forward: Forward | None = None
    lookup: Lookup | None = None
    copy: Sequence[int] = ()
    copy_waits: bool = False
    tokens: list[int] = field(default_factory=list)

    @classmethod
    def start(
        cls,
        engine: Engine,
        prompt: Sequence[int],
        sampler: Sampler,
        max_tokens: int,
        stop_tokens: Collection[int],
        lookup: Lookup | None = None,
    ) -> State:
        """The state of a new request; arguments as for `rounds.rounds`."""
        speculation = Speculation.start(engine, list(prompt), sampler.temperature)
        gamma = speculation.gamma if speculation else 0
        policy = engine.scheduler.start(gamma, sampler.temperature)
        caches, stop = engine.target.new_caches(), frozenset(stop_tokens)
        learning = policy if isinstance(policy, LearningPolicy) else None
        if lookup is not None and isinstance(policy, CopyingPolicy):
            lookup.read(prompt)
        else:
            lookup = None
        return cls(
            caches,
            speculation,
            policy,
            sampler,
            max_tokens,
            stop,
            engine.target,
            learning=learning,
            lookup=lookup,
            tokens=list(prompt),
        )

    @property
    def limit(self) -> int:
        """How many tokens the next round may commit."""
        return self.target.rows_alike(self.anchor_index, self.remaining)

    @property
    def position(self) -> Position:
        """Position of the next forward's first row, the anchor."""
        return Position(self.anchor_index, self.prefix)

    def count(self, round_: Round) -> None:
        """Count a round's tokens; the request may end with it."""
        if self.lookup:
            self.lookup.commit(round_.tokens)
        self.tokens += round_.tokens
        self.remaining -= len(round_.tokens)
        self.ended = self.remaining == 0 or round_.tokens[-1] in self.stop

    def close(self) -> None:
        """Wait for `next_step`, so that nothing of the request still runs; keep what it taught.

        Caches and context are freed here: the traceback of an error that somebody keeps, or that
        waits for garbage collection, holds this state.
        """
        next_step, self.next_step = self.next_step, None
        if next_step is not None and self.error is None:
            mx.eval([part.packed.array for part in next_step.judged if part])
        if self.learning:
            self.learning.close()
        self.caches.clear()
        self.speculation = None


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
