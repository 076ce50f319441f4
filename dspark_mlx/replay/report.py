"""What bench --replay prints: every scheduler on recorded rounds and a speed profile, no model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..calibration.by_temperature import Calibrations, read_calibrations
from ..errors import InputError
from ..schedulers.fixed import FixedScheduler
from ..schedulers.make import SCHEDULERS, make_scheduler
from ..schedulers.speed_profile import SpeedProfile, read_profile
from ..system.files import DATA
from .fit import fit_temperatures
from .recorded import RecordedRound, read_rounds
from .simulate import Outcome, ReplayText, best_fixed, oracle, replay, texts

SHIPPED = DATA / "profiles"
JUDGED = tuple(kind.EXAMPLE for name, kind in SCHEDULERS.items() if name != "fixed")
"""Schedulers that a report judges; the best fixed length is found and judged beside them."""


@dataclass(frozen=True)
class Line:
    """One scheduler's result.

    Attributes:
        name: the scheduler. total: over all texts. slowest: the least speedup of a text.
    """

    name: str
    total: Outcome
    slowest: float


def find_profile(name: str) -> tuple[str, SpeedProfile]:
    """A profile from a file, or a shipped one by its name.

    Raises:
        InputError: neither is there, or the file is no profile.
    """
    path = Path(name)
    shipped = sorted(file.stem for file in SHIPPED.glob("*.json"))
    if name in shipped:
        path = SHIPPED / f"{name}.json"
    elif not path.is_file():
        expected = f"a profile's JSON file, or one of {', '.join(shipped)}"
        raise InputError("--profile", repr(name), expected)
    return path.stem, read_profile(path)


def replay_report(
    rounds_path: Path,
    profile_names: Sequence[str],
    calibration_folder: Path | None,
    greedy: bool,
    schedulers: Iterable[str] = JUDGED,
) -> str:
    """Tables, one a profile and sampling temperature, and a last line of JSON.

    Args:
        rounds_path: recorded rounds, see `read_rounds`.
        profile_names: files or shipped profiles.
        calibration_folder: holds calibration.json; None fits on the rounds themselves.
        greedy: False shows a policy of greedy rounds only what it may see when sampling.
        schedulers: to be judged, beside the best fixed length and the oracle.

    Raises:
        InputError: a file that cannot be used, or a profile narrower than the block.
    """
    rounds = read_rounds(rounds_path)
    profiles = [find_profile(name) for name in profile_names]
    calibration = _calibration(rounds, calibration_folder)
    recorded = texts(rounds, calibration)
    lines, data = [], {}
    for name, profile in profiles:
        if profile.widths <= calibration.gamma:
            found = f"widths 1 to {profile.widths}"
            raise InputError(f"profile {name}", found, f"1 to {calibration.gamma + 1} at least")
        for temperature in sorted({text.temperature for text in recorded}):
            alike = [text for text in recorded if text.temperature == temperature]
            judged = _judge(alike, profile, calibration, greedy, schedulers)
            title = f"{name} at temperature {temperature:g}" if temperature else name
            lines += [_table(f"{title}: {profile.name}", judged), ""]
            data[title] = {line.name: _numbers(line) for line in judged}
    return "\n".join([*lines, json.dumps(data)])


def _calibration(rounds: Sequence[RecordedRound], folder: Path | None) -> Calibrations:
    gamma = len(rounds[0].confidence_logits)
    if folder is None:
        return fit_temperatures(rounds)
    found = read_calibrations(folder, gamma)
    if found is None:
        raise InputError(folder, "no calibration.json", "a calibrated drafter's folder")
    return found


def _judge(
    recorded: Sequence[ReplayText],
    profile: SpeedProfile,
    calibration: Calibrations,
    greedy: bool,
    schedulers: Iterable[str],
) -> list[Line]:
    length, _ = best_fixed(recorded, profile)
    fixed = FixedScheduler(length)
    judged = [
        _line("oracle", [oracle(text, profile) for text in recorded]),
        _line(f"best fixed ({length})", [replay(fixed, text, profile) for text in recorded]),
    ]
    for name in schedulers:
        scheduler = make_scheduler(name, profile, calibration)
        outcomes = [replay(scheduler, text, profile, greedy) for text in recorded]
        judged.append(_line(name, outcomes))
    return judged


def _line(name: str, outcomes: Sequence[Outcome]) -> Line:
    slowest = min(outcome.speedup for outcome in outcomes)
    return Line(name, sum(outcomes, Outcome()), slowest)


def _table(title: str, judged: Sequence[Line]) -> str:
    best, fixed = judged[0].total.speedup, judged[1].total.speedup
    head = f"{'scheduler':<15}{'speedup':>9}{'slowest':>9}{'of oracle':>11}{'of fixed':>10}"
    head += f"{'drafting':>10}{'scheduled':>11}{'accepted':>10}{'deciding':>10}"
    rows = [title, head]
    for line in judged:
        total = line.total
        row = f"{line.name:<15}{total.speedup:>8.3f}x{line.slowest:>8.2f}x"
        row += f"{total.speedup / best:>10.1%} {total.speedup / fixed:>9.1%}"
        row += f"{total.blocks / total.rounds:>10.0%}{_per_block(total.scheduled, total):>11.2f}"
        row += f"{_per_block(total.accepted, total):>10.2f}"
        rows.append(row + f"{1e6 * total.deciding_seconds / total.rounds:>7.0f} us")
    return "\n".join(rows)


def _per_block(count: int, total: Outcome) -> float:
    return count / total.blocks if total.blocks else 0.0


def _numbers(line: Line) -> dict[str, Any]:
    total = line.total
    return {
        "speedup": total.speedup,
        "slowest": line.slowest,
        "rounds": total.rounds,
        "blocks": total.blocks,
        "scheduled": total.scheduled,
        "accepted": total.accepted,
        "deciding_us": 1e6 * total.deciding_seconds / total.rounds,
    }
