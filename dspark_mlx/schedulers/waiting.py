"""Whether a round waits for its confidences, which its drafts' tokens do not need.

Waiting lets the block's own confidences choose the verify length. It also leaves the device idle
while the host reads them and builds the verify forward: several percent of a GPU's round, nothing
on a CPU. Both sides are learned. What confidences are worth is known of every block afterwards, and
what waiting costs shows in the times of rounds that did and did not wait.
"""

from __future__ import annotations

import statistics
from collections import deque
from threading import Lock

# Weight of the newest block in the mean gain; at first all blocks count the same.
_NEWEST = 0.15
# Blocks before a gain is believed, and timed rounds of each sort before a cost is.
_LEAST_BLOCKS = 3
_LEAST_ROUNDS = 4
_KEPT_ROUNDS = 15
# Of the first blocks all are learned, then one of so many.
_ALL_OF, _ONE_OF = 12, 4
# A gain of less than this part of a round is not worth finding out what waiting costs.
_LEAST_GAIN = 0.005
# One round in so many is of the other sort, so that a cost which has changed is seen.
_RETRY = 16


class Waiting:
    """What a pair's rounds have shown of waiting; all its requests share it."""

    def __init__(self) -> None:
        self._gain = 0.0
        self._seen = self._blocks = self._asked = 0
        self._ratios: dict[bool, deque[float]] = {
            waited: deque(maxlen=_KEPT_ROUNDS) for waited in (True, False)
        }
        self._used: set[int] = set()
        self._lock = Lock()

    def ask(self) -> bool:
        """Whether the next drafted round should wait."""
        with self._lock:
            if self._blocks < _LEAST_BLOCKS:
                return True
            if self._gain < _LEAST_GAIN:
                return False
            for waited, ratios in self._ratios.items():
                if len(ratios) < _LEAST_ROUNDS:
                    return waited
            self._asked += 1
            pays = self._gain > self._cost()
            return pays if self._asked % _RETRY else not pays

    def wants_gain(self) -> bool:
        """Count a block; whether what its confidences were worth should be learned.

        It takes a quarter of a round's decisions, and after some blocks changes little.
        """
        with self._lock:
            self._seen += 1
            return self._seen <= _ALL_OF or self._seen % _ONE_OF == 0

    def learn(self, gain: float) -> None:
        """Learn what a block's confidences were worth.

        Args:
            gain: what its confidences were worth for the choice of its verify length, as a part of
                what the round was worth.
        """
        with self._lock:
            self._blocks += 1
            self._gain += max(_NEWEST, 1 / self._blocks) * (gain - self._gain)

    def time(self, waited: bool, scheduled: int, ratio: float) -> None:
        """Count a round's time.

        Args:
            waited: whether it waited.
            scheduled: its verified slots.
            ratio: its time over what the speed profile says.
        """
        with self._lock:
            # The first forward of a width may compile.
            if scheduled in self._used:
                self._ratios[waited].append(ratio)
            self._used.add(scheduled)

    def _cost(self) -> float:
        """What waiting adds to a round, as a part of one that does not wait."""
        waited, others = (statistics.median(self._ratios[each]) for each in (True, False))
        return waited / others - 1
