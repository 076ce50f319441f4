"""What a pair's requests have taught, kept for later requests and, in a file, for later runs."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from ..calibration.by_temperature import Calibrations
from ..calibration.sts import Calibration
from ..errors import InputError
from ..system.files import check_format, read_json, write_json
from ..system.system_errors import writing
from .belief import Prior
from .round_times import RoundTimes
from .speed_profile import SpeedProfile
from .waiting import Waiting

FORMAT = "dspark_mlx learned schedule"
FORMAT_VERSION = 1
_GREEDY, _SAMPLED = "greedy", "sampled"


class PairMemory:
    """Beliefs and round times that all requests of a pair share; threads may use it together.

    Greedy and sampled requests are kept apart: sampling accepts fewer drafts, and costs more.

    Args:
        profile: speed profile of the pair on this device.
        calibrations: the drafter's, which a first request starts from.
        path: file of what earlier runs learned; None to keep nothing.

    Warns:
        UserWarning: the file is there and cannot be used, so that all is learned anew; or, once, it
            cannot be written, so that what is learned ends with the process.
    """

    def __init__(
        self,
        profile: SpeedProfile,
        calibrations: Calibration | Calibrations,
        path: Path | None = None,
    ) -> None:
        self._calibrations = calibrations
        self._profile_digest = _digest(profile)
        self._path = path
        self._lock = Lock()
        self._forget(profile)
        if path is not None and path.exists():
            try:
                self._read(path)
            except InputError as error:
                self._forget(profile)
                warnings.warn(f"{error} What it held is learned anew.", stacklevel=2)

    def times(self, temperature: float) -> RoundTimes:
        """The times of requests at a sampling temperature."""
        return self._times[_kind(temperature)]

    def waiting(self, temperature: float) -> Waiting:
        """What waiting for confidences gains and costs requests at a sampling temperature."""
        return self._waiting[_kind(temperature)]

    def prior(self, temperature: float) -> Prior:
        """What a new request at a sampling temperature starts from."""
        kept = self._priors.get(_kind(temperature))
        return kept.for_new_text() if kept else Prior.of(self._calibrations.at(temperature))

    def remember(self, temperature: float, learned: Prior | None) -> None:
        """Keep what a request has learned, in the file too, with the times of all of them.

        Of processes that write at the same time the last one's file stays, whole.

        Args:
            temperature: the request's sampling temperature.
            learned: its belief in the drafter; None without one.
        """
        with self._lock:
            if learned:
                self._priors[_kind(temperature)] = learned
            if self._path is None:
                return
            try:
                with writing(self._path):
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                    write_json(self._path, self.to_dict())
            except InputError as error:
                # A cache folder that is read-only or full must not stop decoding.
                self._path = None
                warnings.warn(f"{error} What is learned is not kept.", stacklevel=2)

    def to_dict(self) -> dict[str, Any]:
        """Everything learned, as a JSON object."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "profile": self._profile_digest,
            "beliefs": {kind: prior.to_dict() for kind, prior in self._priors.items()},
            "times": {kind: times.to_dict() for kind, times in self._times.items()},
        }

    def _forget(self, profile: SpeedProfile) -> None:
        self._times = {_GREEDY: RoundTimes(profile), _SAMPLED: RoundTimes(profile.sampled)}
        self._waiting = {kind: Waiting() for kind in self._times}
        self._priors: dict[str, Prior] = {}

    def _read(self, path: Path) -> None:
        values = check_format(path, read_json(path), FORMAT, FORMAT_VERSION)
        if sorted(values) != ["beliefs", "profile", "times"]:
            raise InputError(path, f"keys {', '.join(sorted(values))}", "beliefs, profile, times")
        gamma = self._calibrations.gamma
        for kind, data in _items(values["beliefs"], f"{path}: beliefs"):
            self._priors[kind] = Prior.from_dict(data, gamma, f"{path}: beliefs.{kind}")
        # Times are relative to a profile; a new one makes them meaningless.
        for kind, data in _items(values["times"], f"{path}: times"):
            if values["profile"] == self._profile_digest:
                self._times[kind].restore(data, f"{path}: times.{kind}")


def _kind(temperature: float) -> str:
    return _SAMPLED if temperature else _GREEDY


def _items(value: object, where: str) -> list[tuple[str, Mapping[str, Any]]]:
    kinds = (_GREEDY, _SAMPLED)
    if not isinstance(value, dict) or not set(value) <= set(kinds):
        raise InputError(where, repr(value)[:80], f"an object with keys of {', '.join(kinds)}")
    for kind, data in value.items():
        if not isinstance(data, dict):
            raise InputError(f"{where}.{kind}", repr(data)[:80], "an object")
    return list(value.items())


def _digest(profile: SpeedProfile) -> int:
    numbers = (profile.contexts, profile.verify, profile.draft, profile.plain, profile.sampling)
    return zlib.crc32(repr(numbers).encode())
