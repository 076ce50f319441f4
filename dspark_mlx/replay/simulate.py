"""Replay: what a scheduler would have made of recorded rounds, on any machine's speed profile.

Needs no model: a recording holds, for every position of a text, the block's confidences and how
much of it the target takes, so any schedule can be walked through it exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from operator import mul
from time import perf_counter
from typing import TypeAlias, TypeVar

from ..calibration.by_temperature import Calibrations
from ..calibration.sts import Calibration
from ..schedulers import LearningPolicy, Policy, Scheduler, schedule
from ..schedulers.fixed import FixedScheduler
from ..schedulers.pace import best_length
from ..schedulers.speed_profile import Costs, SpeedProfile
from ..types import Round
from .recorded import RecordedRound

T = TypeVar("T")
Stopwatch: TypeAlias = Callable[[float], float]
"""From a round's milliseconds to those that are measured."""


@dataclass(frozen=True)
class Outcome:
    """A schedule's total over one or more requests.

    Attributes:
        tokens: committed. milliseconds: by the profile. plain_milliseconds: of decoding plainly.
        rounds: all of them. blocks: those that drafted. scheduled, accepted: sums over the blocks.
        deciding_seconds: what the policy itself took, all calls together.
    """

    tokens: int = 0
    milliseconds: float = 0.0
    plain_milliseconds: float = 0.0
    rounds: int = 0
    blocks: int = 0
    scheduled: int = 0
    accepted: int = 0
    deciding_seconds: float = 0.0

    @property
    def speedup(self) -> float:
        """Plain time over the schedule's."""
        return self.plain_milliseconds / self.milliseconds

    def __add__(self, other: Outcome) -> Outcome:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Outcome(*(a + b for a, b in pairs))


@dataclass(frozen=True)
class ReplayText:
    """One recorded request: rounds by position, and their calibrated confidences."""

    task: str
    start: int
    accepted: tuple[int, ...]
    confidence: tuple[tuple[float, ...], ...]
    temperature: float = 0.0


def texts(
    rounds: Iterable[RecordedRound], calibration: Calibration | Calibrations
) -> list[ReplayText]:
    """Group recorded rounds by temperature and request, in the order of their positions."""
    made = []
    for (temperature, _), group in groupby(
        rounds, key=lambda done: (done.temperature, done.request)
    ):
        ordered = sorted(group, key=lambda done: done.position)
        logits = [done.confidence_logits for done in ordered]
        confidence = calibration.at(temperature).probabilities(logits).tolist()
        made.append(
            ReplayText(
                temperature=temperature,
                task=ordered[0].task,
                start=ordered[0].position,
                accepted=tuple(done.accepted for done in ordered),
                confidence=tuple(map(tuple, confidence)),
            )
        )
    return made


def replay(
    scheduler: Scheduler,
    text: ReplayText,
    profile: SpeedProfile,
    greedy: bool = True,
    stopwatch: Stopwatch = float,
) -> Outcome:
    """Walk a request's text under a scheduler.

    Args:
        scheduler: starts a policy for it.
        text: the recording; a sampled one is walked at a sampled request's costs.
        profile: gives every step's time.
        greedy: False shows the policy of a greedy text's block only what it may see when sampling,
            which is all that it sees of a sampled one's.
        stopwatch: the time that the policy is told of a round that takes so many milliseconds.
    """
    gamma = len(text.confidence[0])
    policy = scheduler.start(gamma, text.temperature)
    profile, greedy = _as_sampled(text, profile), greedy and not text.temperature
    clock = _Clock(policy)
    total, at, parked, started = Outcome(), 0, 0, False
    while at < len(text.accepted):
        costs = profile.at(text.start + at)
        limit = min(gamma, len(text.accepted) - at)
        parked = parked or clock.park(text.start + at, limit)
        if parked:
            parked -= 1
            # On MLX's CPU backend a start takes as long as its forward, and a step starts the next.
            ahead = parked > 0 and at + 1 < len(text.accepted)
            done, spent = Round((0,), steady=started and ahead), costs.plain
            told = ((not started) + ahead) * spent
            started = ahead
        else:
            done = _block(clock, text, at, limit, greedy)
            spent = told = costs.draft + costs.verify[done.scheduled]
        clock.learn(replace(done, seconds=stopwatch(told) / 1e3))
        at += len(done.tokens)
        total += _outcome(done, spent, costs.plain)
    if isinstance(policy, LearningPolicy):
        policy.close()
    return total + Outcome(deciding_seconds=clock.seconds)


def _as_sampled(text: ReplayText, profile: SpeedProfile) -> SpeedProfile:
    return profile.sampled if text.temperature else profile


def oracle(text: ReplayText, profile: SpeedProfile) -> Outcome:
    """The best that is possible with the text's own odds, known in advance.

    It is shown all calibrated confidences of every block and knows the text's long-run rate, which
    is found by repeated substitution (Dinkelbach); it decodes plainly where that is faster.
    """
    profile, text = _as_sampled(text, profile), replace(text, temperature=0.0)
    best, rate = replay(FixedScheduler(0), text, profile), 1.0
    for _ in range(20):
        found = replay(_KnownRate(profile, rate), text, profile)
        if abs(found.speedup - rate) < 1e-6:
            break
        rate = found.speedup
        best = max(best, found, key=lambda outcome: outcome.speedup)
    return best


def best_fixed(many: Sequence[ReplayText], profile: SpeedProfile) -> tuple[int, Outcome]:
    """The verify length, 0 included, that is fastest over all texts in hindsight."""
    gamma = len(many[0].confidence[0])
    totals = [total(FixedScheduler(n), many, profile) for n in range(gamma + 1)]
    best = max(range(gamma + 1), key=lambda n: totals[n].speedup)
    return best, totals[best]


def total(
    scheduler: Scheduler, many: Iterable[ReplayText], profile: SpeedProfile, greedy: bool = True
) -> Outcome:
    """`replay` over several texts."""
    return sum((replay(scheduler, text, profile, greedy) for text in many), Outcome())


class _KnownRate:
    """Schedules every block for a rate that is known; its own policy."""

    name = "known rate"
    needs_confidence = True
    reads_confidence = True

    def __init__(self, profile: SpeedProfile, rate: float) -> None:
        self._profile = profile
        self._rate = rate
        self._costs: Costs | None = None
        self._limit = 0

    def start(self, gamma: int, temperature: float = 0.0) -> Policy:
        return self

    def park(self, context: int, limit: int) -> int:
        self._costs, self._limit = self._profile.at(context), limit
        return 0

    def admit(self, slot: int, seen: Sequence[float]) -> bool:
        assert self._costs is not None
        survival = list(accumulate(seen, mul))
        return best_length(survival, self._costs, self._rate, slot, self._limit)[0] > slot

    def learn(self, done: Round) -> None: ...


class _Clock:
    """A policy whose calls are timed."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.seconds = 0.0

    def park(self, context: int, limit: int) -> int:
        return self._timed(lambda: self.policy.park(context, limit))

    def schedule(self, confidence: Sequence[float], limit: int, greedy: bool) -> int:
        return self._timed(lambda: schedule(self.policy, confidence, limit, greedy))

    def learn(self, done: Round) -> None:
        self._timed(lambda: self.policy.learn(done))

    def _timed(self, call: Callable[[], T]) -> T:
        started = perf_counter()
        result = call()
        self.seconds += perf_counter() - started
        return result


def _block(clock: _Clock, text: ReplayText, at: int, limit: int, greedy: bool) -> Round:
    confidence = text.confidence[at]
    shown = confidence if clock.policy.reads_confidence else ()
    scheduled = clock.schedule(shown, limit, greedy)
    accepted = min(scheduled, text.accepted[at])
    return Round(
        (0,) * (accepted + 1),
        drafted=len(confidence),
        scheduled=scheduled,
        accepted=accepted,
        confidence=confidence,
    )


def _outcome(done: Round, spent: float, plain: float) -> Outcome:
    count = len(done.tokens)
    blocks = int(done.drafted > 0)
    return Outcome(count, spent, plain * count, 1, blocks, done.scheduled, done.accepted)
