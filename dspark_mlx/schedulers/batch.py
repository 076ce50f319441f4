"""One schedule for all requests of a batch: whether to draft, and how many rows to verify.

All rows of a batch's forward are padded to the widest request's, so that its cost depends on the
number of requests and on that one width. The paper's Algorithm 1 (section 4) admits the likeliest
slot of all requests while tokens per second grow; with padding, what it can save is a whole slot of
the batch, so slots are admitted for all requests at once, by the sum of their survivals.

Lossless for the same reason as there: while a request samples, slot k is admitted by nothing that
depends on its tokens from slot k on. Other requests' tokens are independent of it.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

from ..calibration.by_temperature import Calibrations
from ..types import Round
from . import Policy, Scheduler
from .belief import Belief, BelievingPolicy, Prior
from .round_times import PLAIN, add_ratio
from .speed_profile import SpeedProfile

# Drafting requests end at different times, and the last ones decode alone.
_MIN_GAIN = 1.08
# Times that are wrong by less than this could hide that drafts pay; rounds to be timed until then.
_DOUBT = 1.5
_TRIED = 3
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
_ABOUT = 1.5
_NEWEST = 15


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


class BatchTimes:
    """What a round of several requests takes, in milliseconds.

    A speed profile says it at first; rounds correct it, since profiles know few numbers of
    requests. Threads may use it together: each may decode requests of its own.

    Args:
        profile: the pair's.
        gamma: slots of a block.
    """

    def __init__(self, profile: SpeedProfile, gamma: int) -> None:
        self.profile = profile
        self._gamma = gamma
        self._batches = {n: row for n, row in profile.batches.items() if n > 1}
        self._ratios: dict[tuple[int, int], deque[float]] = {}
        self._used: set[tuple[int, int]] = set()
        self._lock = Lock()

    def at(self, requests: int, width: int, context: int) -> float:
        """The time of a round whose forward has so many rows of each request.

        Args:
            requests: number of requests.
            width: rows of each; `PLAIN` for a plain step.
            context: their mean context.
        """
        with self._lock:
            return self._base(requests, width, context) * self._ratio(requests, width)

    def learn(self, requests: int, width: int, context: int, milliseconds: float) -> None:
        """Count a round; arguments as for `at`. The first round of a kind may compile, and does not
        count."""
        kind = (requests, width)
        with self._lock:
            if kind in self._used:
                ratios = self._ratios.setdefault(kind, deque(maxlen=_NEWEST))
                add_ratio(ratios, milliseconds / self._base(requests, width, context))
            self._used.add(kind)

    def timed(self, requests: int, plain: bool) -> int:
        """How many rounds of about so many requests were timed, plain ones or of one width."""
        with self._lock:
            counts = (
                len(ratios)
                for (n, width), ratios in self._ratios.items()
                if (width == PLAIN) == plain and max(n, requests) <= _ABOUT * min(n, requests)
            )
            return max(counts, default=0)

    def _ratio(self, requests: int, width: int) -> float:
        """How much longer rounds take than the profile says, of the rounds that are most alike.

        Of two ratios the lower counts, since most of what disturbs a time makes it longer.
        """
        alike = [key for key in self._ratios if (key[1] == PLAIN) == (width == PLAIN)]
        if not alike and width != PLAIN:
            # Plain steps show whether the machine is as busy as when the profile was measured.
            alike = list(self._ratios)
        if not alike:
            return 1.0
        known = [key for key in alike if len(self._ratios[key]) >= _TRIED] or alike
        nearest = min(
            known, key=lambda key: (abs(math.log(key[0] / requests)), abs(key[1] - width))
        )
        return statistics.median_low(self._ratios[nearest])

    def _base(self, requests: int, width: int, context: int) -> float:
        costs, block = self.profile.at(context), self._gamma
        one, all_ = self._forward(1, 1, context), self._forward(requests, 1, context)
        if width == PLAIN:
            return costs.plain * all_ / one
        # A drafter's rows get dearer as the target's do.
        draft = costs.draft * self._rows(requests * block, context) / self._rows(block, context)
        return draft + self._forward(requests, width, context)

    def _forward(self, requests: int, width: int, context: int) -> float:
        """From the profile's largest batch of no more requests, by the total of rows."""
        measured = max((n for n in self._batches if n <= requests), default=1)
        known = self._batches.get(measured, self.profile.at(context).verify)
        if measured == 1 or width > len(known):
            return self._rows(requests * width, context)
        more = self._rows(requests * width, context) / self._rows(measured * width, context)
        return known[width - 1] * more

    def _rows(self, rows: int, context: int) -> float:
        """One request's forward over so many rows, beyond what was measured in a straight line."""
        verify = self.profile.at(context).verify
        if rows <= len(verify):
            return verify[rows - 1]
        slope = (verify[-1] - verify[0]) / max(len(verify) - 1, 1)
        return verify[-1] + max(slope, 0.0) * (rows - len(verify))


class BatchSchedule:
    """Schedules the rounds of a changing batch of requests.

    Args:
        times: of the pair's rounds, which it corrects.
        calibrations: the drafter's, which requests are believed by at first.
    """

    def __init__(self, times: BatchTimes, calibrations: Calibrations) -> None:
        self._times = times
        self._calibrations = calibrations
        self._left = self._plain_steps = self._drafts = 0
        self._due = _PLAIN_FIRST
        self._trial = _TRIALS[0]
        self._settled = self._after_plain = self._again = False

    @property
    def parked(self) -> int:
        """Number of plain steps that are certain to follow."""
        return self._left

    def start(self, policy: Policy, temperature: float) -> Belief:
        """What is known of a new request's drafts: its policy's own, which learns it then."""
        if isinstance(policy, BelievingPolicy):
            return policy.belief
        return Belief(Prior.of(self._calibrations.at(temperature)))

    def changed(self) -> None:
        """Other requests are active from the next round on."""
        self._left = 0
        # The next round copies caches too, and is not timed.
        self._settled = False

    def park(self, requests: Sequence[Candidate]) -> bool:
        """Whether the next round is a plain step of all requests; at least one could draft."""
        if self._left:
            self._left -= 1
            self._plain_steps += 1
            return True
        if self._again:
            self._again = False
            return False
        count, gain = len(requests), self._gain(requests)
        due = self._drafts >= self._due and gain < _CLEAR
        if due or not self._times.timed(count, plain=True):
            # Else drafts that lose to faster plain steps than is known would go on.
            self._drafts, self._due = 0, _PLAIN_EVERY
            self._left = _TIMED_STEPS - 1
            return True
        if gain > _MIN_GAIN:
            self._plain_steps, self._trial = 0, _TRIALS[0]
            self._drafts += 1
            return False
        if gain * _DOUBT > 1 and self._times.timed(count, plain=False) < _TRIED:
            return False
        if self._plain_steps >= self._trial:
            self._plain_steps, self._trial = 0, min(2 * self._trial, _TRIALS[1])
            self._again = True  # the first one is not timed
            return False
        self._left = _RECHECK - 1
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
        # The first draft after plain steps takes in what they added, in a shape of its own.
        if self._settled and not (self._after_plain and width != PLAIN):
            self._times.learn(len(requests), width, _context(requests), 1e3 * seconds)
        self._settled, self._after_plain = True, width == PLAIN
        for each, round_ in zip(requests, rounds, strict=True):
            if round_ and round_.drafted:
                each.belief.learn(round_)

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
