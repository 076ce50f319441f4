"""The speed profile: costs of a verify forward, a draft and a plain step, by width and context.

Numbers and their JSON file only; `profiling` measures profiles and stores them.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..system.files import check_format, read_json, write_json

FORMAT = "dspark_mlx speed profile"
FORMAT_VERSION = 1

_BUCKET = 64
_LONGEST_MS = 1e9


@dataclass(frozen=True)
class Costs:
    """Costs of a round's parts at one context length, in milliseconds.

    Attributes:
        draft: cost of drafting a block.
        plain: cost of a plain step; the next step starts before this one is read.
        verify: cost of verifying `rows` rows, at index `rows - 1`: that of the cheapest forward of
            this width or more.
        rows: width of that cheapest forward, at index `rows - 1`.
    """

    draft: float
    plain: float
    verify: tuple[float, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True)
class SpeedProfile:
    """Median times of one pair's forwards on one device, in milliseconds, not smoothed.

    Attributes:
        name: name of the pair, for messages.
        key: `checkpoint.fingerprint` of what was measured; "" for a profile made by hand.
        device: name of the device.
        contexts: cache lengths that were measured, ascending.
        verify: time of a verify forward of one request, `[context][width - 1]`.
        draft: time to draft a block, `[context]`; 0 without a drafter.
        plain: time of a plain step, `[context]`. The next step starts before this one is read, so a
            plain step can be cheaper than a verify forward of width 1.
        batches: for a number of requests, the time of one forward over all of them at the middle
            context, `[width - 1]`, of as many widths as were measured; empty where none was, or
            the target's caches do not support it.
        verify_spread: interquartile range of each `verify` time divided by its median, of the same
            shape; 1 where there were too few repeats.
        sampling: times that sampling adds to a draft, to a forward's first row and to each further
            row; zeros when they were not measured.
        rounds: what a plain step and a drafted round of the decode loop take beyond their forwards;
            zeros when that was not measured.
        quick: True where only a few widths at one context were measured, and the others are
            interpolated.
    """

    name: str
    key: str
    device: str
    contexts: tuple[int, ...]
    verify: tuple[tuple[float, ...], ...]
    draft: tuple[float, ...]
    plain: tuple[float, ...]
    batches: Mapping[int, tuple[float, ...]]
    verify_spread: tuple[tuple[float, ...], ...]
    sampling: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rounds: tuple[float, float] = (0.0, 0.0)
    quick: bool = False
    _costs: dict[int, Costs] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def widths(self) -> int:
        """The largest width measured; every width from 1 to it was."""
        return len(self.verify[0])

    @property
    def noise(self) -> float:
        """How much repeats of a forward differ: the largest median spread of a context."""
        return max(statistics.median(row) for row in self.verify_spread)

    @cached_property
    def sampled(self) -> SpeedProfile:
        """The profile of a request that samples."""
        draft, first, further = self.sampling
        return dataclasses.replace(
            self,
            draft=tuple(ms + draft for ms in self.draft),
            plain=tuple(ms + first for ms in self.plain),
            verify=tuple(
                tuple(ms + first + further * i for i, ms in enumerate(row)) for row in self.verify
            ),
        )

    def widened(self, widths: int) -> SpeedProfile:
        """The profile with widths up to `widths`, of which those not measured are estimates.

        They go on from the widest one with the slope of the wider half, or of all if that is more.
        """
        more = widths - self.widths
        if more <= 0:
            return self
        return dataclasses.replace(
            self,
            verify=tuple((*row, *_going_on(row, more)) for row in self.verify),
            verify_spread=tuple((*row, *(1.0,) * more) for row in self.verify_spread),
            batches={},
        )

    def at(self, context: int) -> Costs:
        """Costs at a cache length, rounded to a multiple of 64.

        They are linear between measured contexts and constant before the first. After the last one
        they grow with the mean slope over all contexts, and never shrink.
        """
        bucket = (context + _BUCKET // 2) // _BUCKET
        costs = self._costs.get(bucket)
        if costs is None:
            costs = self._costs[bucket] = self._interpolated(bucket * _BUCKET)
        return costs

    def _interpolated(self, context: int) -> Costs:
        lengths = np.array(self.contexts)
        columns = np.column_stack([self.draft, self.plain, self.verify])
        beyond = context - self.contexts[-1]
        if beyond > 0 and len(lengths) > 1:
            # First and last: a slope between neighbours would carry their noise far out.
            slope = (columns[-1] - columns[0]) / (lengths[-1] - lengths[0])
            row = columns[-1] + np.maximum(slope, 0) * beyond
        else:
            row = np.array([np.interp(context, lengths, column) for column in columns.T])
        plain_round, drafted_round = self.rounds
        draft, plain, *verify = row.tolist()
        plain, verify = plain + plain_round, [ms + drafted_round for ms in verify]
        # The cheapest width from each width on; of equally cheap widths the smallest.
        best = [i + int(np.argmin(verify[i:])) for i in range(len(verify))]
        rows = tuple(i + 1 for i in best)
        return Costs(draft, plain, tuple(verify[i] for i in best), rows)

    def to_dict(self) -> dict[str, Any]:
        """The profile as a JSON object, see `from_dict`."""
        names = [f.name for f in dataclasses.fields(self) if f.init]
        values = {name: getattr(self, name) for name in names}
        values["batches"] = {str(rows): row for rows, row in self.batches.items()}
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **values}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: Path | str) -> SpeedProfile:
        """The profile in a JSON object from `to_dict`; `where` names its file in errors.

        Raises:
            InputError: the format or its version is another one, a key is missing, unknown or of
                the wrong type, a shape contradicts the others, or a number is not a valid time.
        """
        values = check_format(where, data, FORMAT, FORMAT_VERSION)
        # What an export adds for its readers: races, which hold for that device.
        for races in ("kernels", "compiled"):
            values.pop(races, None)
        names = {f.name for f in dataclasses.fields(cls) if f.init}
        if missing := sorted(names - set(values)):
            raise InputError(where, f"no {', '.join(missing)}", "every key of the format")
        if unknown := sorted(set(values) - names):
            raise InputError(where, f"unknown keys {', '.join(unknown)}", "the format's keys only")
        for name in ("name", "key", "device"):
            if not isinstance(values[name], str):
                raise InputError(f"{where}: {name}", repr(values[name]), "a string")
        if not isinstance(values["quick"], bool):
            raise InputError(f"{where}: quick", repr(values["quick"]), "true or false")
        contexts = _contexts(values["contexts"], f"{where}: contexts")
        count, verify = len(contexts), values["verify"]
        first = verify[0] if isinstance(verify, list) and verify else None
        if not isinstance(first, list) or not first:
            raise InputError(f"{where}: verify", _shape(verify), f"{count} lists of times")
        added = _times(values["sampling"], 3, f"{where}: sampling", zero=True)
        rounds = _times(values["rounds"], 2, f"{where}: rounds", zero=True)
        return cls(
            sampling=(added[0], added[1], added[2]),
            rounds=(rounds[0], rounds[1]),
            quick=values["quick"],
            name=values["name"],
            key=values["key"],
            device=values["device"],
            contexts=contexts,
            verify=_table(verify, count, len(first), f"{where}: verify"),
            draft=_times(values["draft"], count, f"{where}: draft", zero=True),
            plain=_times(values["plain"], count, f"{where}: plain"),
            batches=_batches(values["batches"], len(first), f"{where}: batches"),
            verify_spread=_table(
                values["verify_spread"], count, len(first), f"{where}: verify_spread", zero=True
            ),
        )


def read_profile(path: Path) -> SpeedProfile:
    """The profile in a JSON file.

    Raises:
        InputError: the file is refused by `files.read_json` or `SpeedProfile.from_dict`.
    """
    return SpeedProfile.from_dict(read_json(path), path)


def write_profile(path: Path, profile: SpeedProfile) -> None:
    """Write a profile as JSON, atomically.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        write_json(path, profile.to_dict())
    except OSError as error:
        found = f"a path that cannot be written ({error.strerror})"
        raise InputError(path, found, "a writable file in an existing folder") from error


def _going_on(row: tuple[float, ...], more: int) -> list[float]:
    """`more` times after those of widths 1..n, see `SpeedProfile.widened`."""
    last, middle = len(row) - 1, len(row) // 2
    slope = max((row[last] - row[i]) / max(last - i, 1) for i in (0, middle))
    # One width alone says nothing of further rows; they are taken to cost as much as it.
    slope = max(slope, 0.0) if last else row[0]
    return [row[last] + slope * i for i in range(1, more + 1)]


def _shape(value: object) -> str:
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)


def _contexts(value: object, where: str) -> tuple[int, ...]:
    expected = "whole numbers from 1 on, ascending"
    if not isinstance(value, list) or not value or any(type(item) is not int for item in value):
        raise InputError(where, repr(value), expected)
    if value[0] < 1 or any(a >= b for a, b in itertools.pairwise(value)):
        raise InputError(where, value, expected)
    return tuple(value)


def _times(value: object, count: int, where: str, *, zero: bool = False) -> tuple[float, ...]:
    """A list of `count` finite positive numbers; 0 is allowed where `zero`."""
    if not isinstance(value, list) or len(value) != count:
        raise InputError(where, _shape(value), f"a list of {count} numbers")
    for item in value:
        number = type(item) in (int, float)
        # Written so that NaN, which compares as false, is refused too.
        if not (number and (0 < item < _LONGEST_MS or (zero and item == 0))):
            raise InputError(where, item, f"finite numbers {'from' if zero else 'above'} 0")
    return tuple(float(item) for item in value)


def _table(
    value: object, count: int, widths: int, where: str, *, zero: bool = False
) -> tuple[tuple[float, ...], ...]:
    if not isinstance(value, list) or len(value) != count:
        raise InputError(where, _shape(value), f"{count} lists, one per context")
    rows = enumerate(value)
    return tuple(_times(row, widths, f"{where}[{i}]", zero=zero) for i, row in rows)


def _batches(value: object, widths: int, where: str) -> dict[int, tuple[float, ...]]:
    if not isinstance(value, dict):
        raise InputError(where, repr(value), "an object with a key for each number of requests")
    for name in value:
        if not (name.isascii() and name.isdigit() and name[0] != "0"):
            raise InputError(where, f"the key {name!r}", "a number of requests")
    for name, row in value.items():
        if not isinstance(row, list) or not 0 < len(row) <= widths:
            raise InputError(f"{where}[{name}]", _shape(row), f"a list of 1 to {widths} numbers")
    return {int(name): _times(row, len(row), f"{where}[{name}]") for name, row in value.items()}
