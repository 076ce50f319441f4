"""What rounds cost, corrected by what they took: medians of recent rounds over a speed profile.

All requests of a pair share these times. A profile can be short (it measured few widths, and one
context) or wrong (the machine was busy, or is now); rounds show it.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from threading import Lock
from typing import Any

import numpy as np

from ..errors import InputError
from ..numbers import check_numbers
from .speed_profile import Costs, SpeedProfile

PLAIN = 0
"""The width that stands for a plain step."""

_NEWEST = 15
_LEAST = 3
_KEPT = 5
_PULL = 3
_FURTHEST = 8.0
# Contexts are kept apart by octaves from here on.
_FIRST_OCTAVE = 512
# Drafted rounds after which plain steps should be timed again; the first time sooner.
_PLAIN_EVERY = 200
_PLAIN_FIRST = 64
# A median of this many changes little by one more, and is not computed for each.
_FEW = 6
_EVERY = 4
# A round that takes so much less than those before: they compiled, or the machine was busy then.
_EASED = 0.6


class RoundTimes:
    """Times of rounds over what the profile says, by width and by octave of the context.

    Args:
        profile: the profile that is corrected.
    """

    def __init__(self, profile: SpeedProfile) -> None:
        self.profile = profile
        self._ratios: dict[tuple[int, int], deque[float]] = {}
        self._corrected: dict[tuple[int, int], Costs] = {}
        self._lock = Lock()
        self._learned = 0
        self._since_plain = _PLAIN_EVERY - _PLAIN_FIRST

    @property
    def plain_is_due(self) -> bool:
        """Whether no plain step was timed for so long that what one takes is not known."""
        return self._since_plain >= _PLAIN_EVERY

    @property
    def plain_is_known(self) -> bool:
        """Whether some plain steps were timed."""
        with self._lock:
            return any(
                width == PLAIN and len(r) >= _LEAST for (width, _), r in self._ratios.items()
            )

    @property
    def drafts_are_known(self) -> bool:
        """Whether some drafted rounds were timed, of any width."""
        with self._lock:
            counts = [len(r) for (width, _), r in self._ratios.items() if width != PLAIN]
        return sum(counts) >= _LEAST

    def at(self, context: int) -> Costs:
        """Costs at a cache length, corrected by the rounds that were learned."""
        base, octave = self.profile.at(context), _octave(context)
        if not self._ratios:
            return base
        key = (octave, id(base))
        with self._lock:
            costs = self._corrected.get(key)
            if costs is None:
                costs = self._corrected[key] = self._correct(base, octave)
        return costs

    def learn(
        self, context: int, scheduled: int | None, milliseconds: float, drafted: bool = True
    ) -> float | None:
        """Count a round.

        Args:
            context: committed tokens before its anchor.
            scheduled: its verified slots; None for a plain step.
            milliseconds: what it took; 0 where that was not measured.
            drafted: False for a round that verified a copy, whose tokens cost no draft.

        Returns:
            The round's time over the profile's; None where it was not measured.
        """
        if not milliseconds:
            return None
        base = self.profile.at(context)
        if scheduled is None:
            width, expected = PLAIN, base.plain
        else:
            width, expected = base.rows[scheduled], base.draft + base.verify[scheduled]
            milliseconds += 0.0 if drafted else base.draft
        ratio = min(max(milliseconds / expected, 1 / _FURTHEST), _FURTHEST)
        with self._lock:
            ratios = self._ratios.setdefault((width, _octave(context)), deque(maxlen=_NEWEST))
            add_ratio(ratios, ratio)
            self._learned += 1
            self._since_plain = 0 if scheduled is None else self._since_plain + 1
            if len(ratios) <= _FEW or self._learned % _EVERY == 0:
                self._corrected.clear()
        return ratio

    def known(self, scheduled: int, context: int) -> bool:
        """Whether enough rounds with so many verified slots were learned near a context."""
        width = self.profile.at(context).rows[scheduled]
        return len(self._ratios.get((width, _octave(context)), ())) >= _LEAST

    def to_dict(self) -> dict[str, list[float]]:
        """The newest ratios by "width octave"; see `restore`."""
        with self._lock:
            return {f"{w} {o}": list(r)[-_KEPT:] for (w, o), r in self._ratios.items()}

    def restore(self, data: Mapping[str, Any], where: str) -> None:
        """Take up the ratios of an earlier run; a few, so that this run's soon outweigh them.

        Raises:
            InputError: a key or a ratio is not one of `to_dict`.
        """
        for key, ratios in data.items():
            parts = key.split(" ")
            if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
                raise InputError(where, f"the key {key!r}", 'a key "width octave"')
            found = check_numbers(f"{where}[{key}]", ratios, None, 1 / _FURTHEST, _FURTHEST)
            self._ratios[int(parts[0]), int(parts[1])] = deque(found[-_KEPT:], maxlen=_NEWEST)

    def _correct(self, base: Costs, octave: int) -> Costs:
        known = self._nearest(octave)
        drafted = {width: ratios for width, ratios in known.items() if width != PLAIN}
        if not known:
            return base
        overall = statistics.median([r for ratios in (drafted or known).values() for r in ratios])
        plain = statistics.median(known[PLAIN]) if PLAIN in known else overall
        ratios = {width: _pulled(ratios, overall) for width, ratios in drafted.items()}
        draft = base.draft * overall
        # Linear between known widths, constant beyond them.
        corrections = np.interp(base.rows, list(ratios) or [0], list(ratios.values()) or [overall])
        verify = tuple(
            (base.draft + ms) * ratio - draft
            for ms, ratio in zip(base.verify, corrections.tolist(), strict=True)
        )
        return replace(base, draft=draft, plain=base.plain * plain, verify=verify)

    def _nearest(self, octave: int) -> dict[int, list[float]]:
        """The ratios of every known width, from the nearest octave that knows it."""
        found: dict[int, tuple[int, list[float]]] = {}
        for (width, other), ratios in self._ratios.items():
            distance = abs(other - octave)
            if len(ratios) >= _LEAST and (width not in found or distance < found[width][0]):
                found[width] = distance, list(ratios)
        return {width: ratios for width, (_, ratios) in sorted(found.items())}


def add_ratio(ratios: deque[float], ratio: float) -> None:
    """Add a round's time over the profile's to the newest ones, and leave out what is past."""
    if ratios and ratio < _EASED * statistics.median_low(ratios):
        ratios.clear()
    ratios.append(ratio)


def _octave(context: int) -> int:
    return (context // _FIRST_OCTAVE).bit_length()


def _pulled(ratios: list[float], overall: float) -> float:
    """The median of a few ratios, pulled towards that of all widths as if by more of them."""
    count = len(ratios)
    return (count * statistics.median(ratios) + _PULL * overall) / (count + _PULL)
