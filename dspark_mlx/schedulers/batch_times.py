"""What rounds of several requests take: a speed profile's times, corrected by rounds."""

from __future__ import annotations

import math
import statistics
from collections import deque
from threading import Lock

from .round_times import PLAIN, add_ratio
from .speed_profile import SpeedProfile

ENOUGH = 3
"""Rounds of a kind after which what they take is known."""

# Numbers of requests that differ by no more than this factor are about the same.
_ABOUT = 1.5
_NEWEST = 15


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
        known = [key for key in alike if len(self._ratios[key]) >= ENOUGH] or alike
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
