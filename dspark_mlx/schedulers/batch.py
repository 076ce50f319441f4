"""One schedule for all requests of a batch: whether to draft, and how many rows to verify.

All rows of a batch's forward are padded to the widest request's, so that its cost depends on the
number of requests and on that one width. The paper's Algorithm 1 (section 4) admits the likeliest
slot of all requests while tokens per second grow; with padding, what it can save is a whole slot of
the batch, so slots are admitted for all requests at once, by the sum of their survivals.

Lossless for the same reason as there: while a request samples, slot k is admitted by nothing that
depends on its tokens from slot k on. Other requests' tokens are independent of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from ..calibration.by_temperature import Calibrations
from ..types import Round
from . import Policy, Scheduler
from .batch_times import ENOUGH, BatchTimes
from .belief import Belief, BelievingPolicy, Prior
from .round_times import PLAIN

# Drafting requests end at different times, and the last ones decode alone.
_MIN_GAIN = 1.08
# Times that are wrong by less than this could hide that drafts pay, until they are known.
_DOUBT = 1.5
# Standard deviations by which drafts are believed to turn out well, and the judged drafts of all
# requests that halve them: else a few unlucky blocks would park everybody.
_OPTIMISM = 1.3
_HALVED_BY = 6.0
# Plain steps before it is looked again whether drafts pay, and before one is tried that does not
# seem to; the latter doubles with each trial.
_RECHECK = 8
_TRIALS = (32, 1024)
# Drafts that gain so much leave no doubt about it.
_CLEAR = 1.5
# Plain steps that are timed at first, of which the first one is not started ahead.
_TIMED_STEPS = 6
# Drafted rounds after which they are timed again; the first time sooner, as nothing ran before.
_PLAIN_FIRST, _PLAIN_EVERY = 16, 64


@dataclass(frozen=True)
class Candidate:
    """What the schedule knows of one request.

    Attributes:
        belief: how far its drafts are believed.
        context: its committed tokens before the anchor.
        limit: the most slots that it may verify; 0 where it does not draft.
        deterministic: see `Sampler.deterministic`.
        samples: whether its temperature is above 0, which costs time at each verified row.
    """

    belief: Belief
    context: int
    limit: int
    deterministic: bool
    samples: bool


class BatchSchedule:
    """Schedules the rounds of a changing batch of requests.

    Args:
        times: of the pair's rounds, which it corrects.
        calibrations: the drafter's, which requests are believed by at first.
    """

    def __init__(self, times: BatchTimes, calibrations: Calibrations) -> None:
        self._times = times
        self._calibrations = calibrations
        self._plain_steps = self._drafts = 0
        self._due = _PLAIN_FIRST
        self._trial = _TRIALS[0]
        # Width of the last round; None where other requests ran it.
        self._last: int | None = None
        # Of the next rounds, as far as they are decided: whether each is a plain step.
        self._decided: deque[bool] = deque()

    @property
    def parked(self) -> int:
        """Number of plain steps that are certain to follow."""
        return sum(self._decided)

    def start(self, policy: Policy, temperature: float) -> Belief:
        """What is known of a new request's drafts: its policy's own, which learns it then."""
        if isinstance(policy, BelievingPolicy):
            return policy.belief
        return Belief(Prior.of(self._calibrations.at(temperature)))

    def changed(self) -> None:
        """Other requests are active from the next round on."""
        # A trial goes on; whether to park is asked again.
        self._decided = deque(plain for plain in self._decided if not plain)
        self._last = None

    def park(self, requests: Sequence[Candidate]) -> bool:
        """Whether the next round is a plain step of all requests; at least one could draft."""
        if self._decided:
            plain = self._decided.popleft()
            self._plain_steps += plain
            return plain
        count, gain = len(requests), self._gain(requests)
        due = self._drafts >= self._due and gain < _CLEAR
        if due or not self._times.timed(count, plain=True):
            # Else drafts that lose to faster plain steps than is known would go on.
            self._drafts, self._due = 0, _PLAIN_EVERY
            self._decided.extend([True] * (_TIMED_STEPS - 1))
            return True
        if gain > _MIN_GAIN:
            self._plain_steps, self._trial = 0, _TRIALS[0]
            self._drafts += 1
            return False
        if gain * _DOUBT > 1 and self._times.timed(count, plain=False) < ENOUGH:
            return False
        if self._plain_steps >= self._trial:
            self._plain_steps, self._trial = 0, min(2 * self._trial, _TRIALS[1])
            self._decided.append(False)  # a second draft: the first one is not timed
            return False
        self._decided.extend([True] * (_RECHECK - 1))
        self._plain_steps += 1
        return True

    def lengths(
        self, requests: Sequence[Candidate], confidence: Sequence[Sequence[float]]
    ) -> list[int]:
        """The verify length of each request's block.

        Args:
            requests: in the order of the batch.
            confidence: of each request's block; empty where it is not read.
        """
        curves = [
            each.belief.survival(seen)[: each.limit]
            for each, seen in zip(requests, confidence, strict=True)
        ]
        count, context = len(requests), _context(requests)
        length, _ = self._best(curves, context, all(each.deterministic for each in requests))
        # A request's own rows cost what sampling takes there; padding is computed anyway.
        plain = self._times.at(count, PLAIN, context)
        least = self._times.profile.sampling[2] * count / plain
        return [
            _worth(curve[:length], least if each.samples else 0.0)
            for each, curve in zip(requests, curves, strict=True)
        ]

    def learn(
        self,
        requests: Sequence[Candidate],
        rounds: Sequence[Round | None],
        width: int,
        seconds: float,
    ) -> None:
        """Update with a round of all requests.

        Args:
            requests: as they were before the round.
            rounds: of each request; None where it has failed.
            width: rows of each request in the forward; `PLAIN` for a plain step that was started
                while the one before ran.
            seconds: what it took.
        """
        if self._is_timed(width):
            self._times.learn(len(requests), width, _context(requests), 1e3 * seconds)
        self._last = width
        for each, round_ in zip(requests, rounds, strict=True):
            if round_ and round_.drafted:
                each.belief.learn(round_)

    def _is_timed(self, width: int) -> bool:
        """Whether the time of a round of this width says what such rounds take."""
        if self._last is None:
            return False  # it copied caches too
        # The first draft after plain steps takes in what they added, in a shape of its own.
        return width == PLAIN or self._last != PLAIN

    def _gain(self, requests: Sequence[Candidate]) -> float:
        """Tokens per second of drafted rounds over those of plain steps, as far as is known."""
        beliefs = [each.belief for each in requests]
        hope = _OPTIMISM / (1 + sum(belief.evidence for belief in beliefs) / _HALVED_BY)
        parts = zip(requests, beliefs, strict=True)
        curves = [belief.survival((), hope)[: each.limit] for each, belief in parts]
        context = _context(requests)
        _, rate = self._best(curves, context, everything=True)
        return rate * self._times.at(len(requests), PLAIN, context) / len(requests)

    def _best(
        self, curves: Sequence[Sequence[float]], context: int, everything: bool
    ) -> tuple[int, float]:
        """The common verify length that is worth most, at least 1, and tokens per millisecond.

        Args:
            curves: each request's survivals.
            context: the requests' mean context.
            everything: whether all lengths may be compared; else the search ends at the first slot
                that brings nothing, so that it has seen no later one (Algorithm 1).
        """
        count = len(curves)
        tokens, best, rate = float(count), 1, 0.0
        for length in range(1, max(map(len, curves)) + 1):
            tokens += sum(curve[length - 1] for curve in curves if length <= len(curve))
            here = tokens / self._times.at(count, length + 1, context)
            if here > rate:
                best, rate = length, here
            elif not everything:
                break
        return best, rate


def weighs_times(scheduler: Scheduler) -> bool:
    """Whether a scheduler weighs the times of rounds, which in a batch are others.

    A `BatchSchedule` takes the place of such a scheduler while several requests decode together;
    others, such as `full`, choose as they do for a single request.
    """
    return bool(getattr(scheduler, "NEEDS_PROFILE", False))


def _context(requests: Sequence[Candidate]) -> int:
    return sum(each.context for each in requests) // len(requests)


def _worth(curve: Sequence[float], least: float) -> int:
    """How many of the first slots have at least this survival."""
    return next((slot for slot, chance in enumerate(curve) if chance < least), len(curve))
