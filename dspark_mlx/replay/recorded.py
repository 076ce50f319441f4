"""Recorded rounds as data: what a calibration is fitted on and a replay walks, and their file."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..system.files import read_json_lines, write_text


@dataclass(frozen=True)
class RecordedRound:
    """A round that judged its whole block.

    Attributes:
        request: index of the prompt.
        task: the prompt's group.
        position: the anchor's, that is the number of committed tokens before it.
        confidence_logits: raw log-odds of every slot of the block, gamma long.
        accepted: how many tokens of the block the target takes, 0..gamma.
        temperature: that the text was sampled at; 0 is greedy.
        chances: of a sampled round, slot by slot: the chance that the slot's token survives, given
            that those before it did, gamma long; 0 behind the first rejection. Empty where greedy.
    """

    request: int
    task: str
    position: int
    confidence_logits: tuple[float, ...]
    accepted: int
    temperature: float = 0.0
    chances: tuple[float, ...] = ()


def arrays(rounds: Sequence[RecordedRound]) -> tuple[np.ndarray, np.ndarray]:
    """Rounds of one sampling temperature as the arrays that `calibration.sts.fit` takes.

    Returns:
        Confidence logits float64 `[n, gamma]`, and accepted counts int64 `[n]` or, of sampled
        rounds, the chances that a block's first k tokens survive, float64 `[n, gamma]`.
    """
    logits = np.array([done.confidence_logits for done in rounds], dtype=np.float64)
    if any(done.chances for done in rounds):
        return logits, np.array([done.chances for done in rounds], dtype=np.float64)
    return logits, np.array([done.accepted for done in rounds], dtype=np.int64)


def by_temperature(rounds: Iterable[RecordedRound]) -> dict[float, list[RecordedRound]]:
    """Rounds by the sampling temperature of their text, ascending."""
    groups: dict[float, list[RecordedRound]] = {}
    for done in rounds:
        groups.setdefault(done.temperature, []).append(done)
    return dict(sorted(groups.items()))


def write_rounds(path: Path, rounds: Iterable[RecordedRound]) -> None:
    """Write JSON lines, one a round, atomically."""
    write_text(path, "".join(json.dumps(dataclasses.asdict(done)) + "\n" for done in rounds))


def read_rounds(path: Path) -> list[RecordedRound]:
    """Read what `write_rounds` wrote.

    Raises:
        InputError: no such file, no rounds in it, or a line (named by its number) that is not one
            round with as many slots as the first.
    """
    lines = read_json_lines(path, "recorded rounds", "round")
    rounds = [_read_round(where, data) for where, data in lines]
    gamma = len(rounds[0].confidence_logits)
    for number, done in enumerate(rounds, 1):
        if len(done.confidence_logits) != gamma:
            found = f"{len(done.confidence_logits)} confidence logits"
            raise InputError(f"{path}:{number}", found, f"{gamma}, as on the first line")
    return rounds


def _read_round(where: str, data: Any) -> RecordedRound:
    names = [field.name for field in dataclasses.fields(RecordedRound)]
    # The last two came later: a line without them is a greedy round.
    if not isinstance(data, dict) or not set(names[:-2]) <= set(data) <= set(names):
        raise InputError(where, json.dumps(data)[:60], f"an object of {', '.join(names)}")
    data = {"temperature": 0.0, "chances": []} | data
    logits = data["confidence_logits"]
    if not _numbers(logits) or not logits:
        raise InputError(where, f"confidence_logits {logits!r}", "finite numbers, one a slot")
    for name, most in (("request", None), ("position", None), ("accepted", len(logits))):
        value = data[name]
        if type(value) is not int or value < 0 or (most is not None and value > most):
            expected = "a whole number, 0 or more" if most is None else f"from 0 to {most}"
            raise InputError(where, f"{name} {value!r}", expected)
    if not isinstance(data["task"], str):
        raise InputError(where, f"task {data['task']!r}", "a string")
    temperature, chances = data["temperature"], data["chances"]
    if not _numbers([temperature]) or temperature < 0:
        raise InputError(where, f"temperature {temperature!r}", "a number, 0 or more")
    slots = len(logits) if temperature else 0
    if not _numbers(chances) or len(chances) != slots or not all(0 <= c <= 1 for c in chances):
        expected = f"{slots} numbers from 0 to 1"
        raise InputError(where, f"chances {chances!r}", f"{expected} at temperature {temperature}")
    return RecordedRound(
        **data
        | {
            "confidence_logits": tuple(map(float, logits)),
            "temperature": float(temperature),
            "chances": tuple(map(float, chances)),
        }
    )


def _numbers(values: object) -> bool:
    """Whether this is a list of finite numbers."""
    return isinstance(values, list) and all(
        type(value) in (int, float) and math.isfinite(value) for value in values
    )
