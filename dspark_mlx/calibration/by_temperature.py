"""A drafter's calibrations by sampling temperature, and the file calibration.json.

The higher a request's temperature, the fewer of its drafts survive, but the confidence head does
not know the temperature. So each temperature has a fit of its own, and a request between two fitted
temperatures gets an interpolated calibration.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..system.files import check_format, read_json, write_json
from ..system.system_errors import writing
from .sts import Calibration

FILE = "calibration.json"
FORMAT = "dspark_mlx.calibration"
FORMAT_VERSION = 2
# Version 1 held a single fit, of greedy rounds, without a sampling temperature.
_GREEDY_VERSION = 1

_FIELDS = sorted(field.name for field in dataclasses.fields(Calibration))


@dataclass(frozen=True)
class Calibrations:
    """A drafter's calibrations by sampling temperature.

    Attributes:
        by_temperature: maps a sampling temperature, 0 for greedy, to the calibration fitted on
            rounds sampled at it. There is at least one; all have the same number of slots.
    """

    by_temperature: Mapping[float, Calibration]

    @property
    def gamma(self) -> int:
        """Slots of a block."""
        return next(iter(self.by_temperature.values())).gamma

    def at(self, temperature: float) -> Calibration:
        """The calibration of a request with a sampling temperature.

        It is linear between the two nearest fits and constant beyond the first and the last. A
        single fit serves every temperature.
        """
        known = sorted(self.by_temperature)
        below = max((t for t in known if t <= temperature), default=known[0])
        above = min((t for t in known if t >= temperature), default=known[-1])
        low, high = self.by_temperature[below], self.by_temperature[above]
        share = (temperature - below) / (above - below) if above > below else 0.0
        return _between(low, high, share) if share > 0 else low


def write_calibrations(folder: Path, calibrations: Calibrations) -> Path:
    """Write calibration.json into a folder, which is made where it does not exist.

    Returns:
        The path of the file.

    Raises:
        InputError: the folder cannot be made or written to.
    """
    fits = [
        {"sampling_temperature": temperature, **dataclasses.asdict(fitted)}
        for temperature, fitted in sorted(calibrations.by_temperature.items())
    ]
    data = {"format": FORMAT, "format_version": FORMAT_VERSION, "fits": fits}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, data)
    return folder / FILE


def read_calibrations(folder: Path, gamma: int) -> Calibrations | None:
    """The calibrations in a drafter's folder; None when it has no calibration.json.

    Args:
        folder: the drafter's folder.
        gamma: slots of the drafter's blocks.

    Raises:
        InputError: the format or its version is another one, a key is missing or unknown, the
            number of slots is not `gamma`, a temperature has two fits, or a value is out of range.
    """
    path = folder / FILE
    if not path.exists():
        return None
    data = read_json(path)
    if data.get("format_version") == _GREEDY_VERSION:
        data = check_format(path, data, FORMAT, _GREEDY_VERSION)
        return Calibrations({0.0: _read_fit(path, data, gamma)})
    data = check_format(path, data, FORMAT, FORMAT_VERSION)
    fits = data.get("fits")
    if list(data) != ["fits"] or not isinstance(fits, list) or not fits:
        raise InputError(path, f"keys {', '.join(sorted(data))}", "fits, a list of them")
    read: dict[float, Calibration] = {}
    for fitted in fits:
        if not isinstance(fitted, dict):
            raise InputError(path, f"fit {fitted!r}", "an object")
        values = dict(fitted)
        name = "sampling_temperature"
        (temperature,) = _numbers(path, name, [values.pop(name, None)], 1)
        if temperature < 0 or temperature in read:
            found_value = f"{name} {temperature}" + " twice" * (temperature in read)
            raise InputError(path, found_value, "temperatures of 0 or more, each once")
        read[temperature] = _read_fit(path, values, gamma)
    return Calibrations(read)


def _read_fit(path: Path, data: dict[str, Any], gamma: int) -> Calibration:
    if sorted(data) != _FIELDS:
        raise InputError(path, f"keys {', '.join(sorted(data))}", ", ".join(_FIELDS))
    if type(data["rounds"]) is not int or data["rounds"] < 0:
        raise InputError(path, f"rounds {data['rounds']!r}", "a whole number, 0 or more")
    temperatures = _numbers(path, "temperatures", data["temperatures"], gamma)
    if min(temperatures) <= 0:
        raise InputError(path, f"temperatures {list(temperatures)}", "numbers above 0")
    means = _numbers(path, "means", data["means"], gamma)
    (persistence,) = _numbers(path, "persistence", [data["persistence"]], 1)
    blocks = data["typical"]
    if not isinstance(blocks, list) or not blocks:
        raise InputError(path, f"typical {blocks!r}", "a list of blocks' confidences")
    typical = tuple(_numbers(path, "typical", block, gamma) for block in blocks)
    if not all(0 <= value <= 1 for value in (*means, persistence, *chain(*typical))):
        found_values = "a mean, a persistence or a confidence below 0 or above 1"
        raise InputError(path, found_values, "numbers from 0 to 1")
    return Calibration(temperatures, data["rounds"], means, persistence, typical)


def _numbers(path: Path, name: str, values: object, count: int) -> tuple[float, ...]:
    numbers = [v for v in values if type(v) in (int, float)] if isinstance(values, list) else []
    if values != numbers or len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise InputError(path, f"{name} {values!r}", f"{count} finite numbers")
    return tuple(map(float, numbers))


def _between(low: Calibration, high: Calibration, share: float) -> Calibration:
    """The interpolated calibration (1 - share) * low + share * high, number by number."""

    def mixed(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, ...]:
        return tuple((1 - share) * x + share * y for x, y in zip(a, b, strict=True))

    nearest = low if share < 0.5 else high
    typical = nearest.typical
    # Both lists are ordered by expected accepted tokens, so blocks of the same rank are mixed.
    if len(low.typical) == len(high.typical):
        typical = tuple(map(mixed, low.typical, high.typical))
    (persistence,) = mixed((low.persistence,), (high.persistence,))
    return Calibration(
        mixed(low.temperatures, high.temperatures),
        min(low.rounds, high.rounds),
        mixed(low.means, high.means),
        persistence,
        typical,
    )
