"""A training run's log: a CSV line every few steps and at every evaluation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..system.files import read_text, write_text
from ..system.system_errors import writing
from .step.metrics import BlockMetrics

FIELDS = [
    "kind",
    "step",
    "epoch",
    "learning_rate",
    "loss",
    "tau_sampled",
    "tau_greedy",
    "confidence_error",
    "seconds",
]
KINDS = ("train", "held-out")
_HINT = "Move it away to go on without the lines before."


@dataclass(frozen=True)
class Entry:
    """A line of the log.

    Attributes:
        kind: "train" for the steps since the last line, "held-out" for an evaluation.
        step: steps done.
        epoch: how often every text was seen.
        learning_rate: the last step's.
        watched: the blocks' metrics, see `BlockMetrics`.
        seconds: training time so far.
    """

    kind: str
    step: int
    epoch: float
    learning_rate: float
    watched: BlockMetrics
    seconds: float

    def row(self) -> dict[str, str]:
        """The values as text, by column."""
        watched = self.watched
        values = {
            "kind": self.kind,
            "step": str(self.step),
            "epoch": f"{self.epoch:.3f}",
            "learning_rate": f"{self.learning_rate:.3e}",
            "loss": f"{watched.mean_loss:.5f}",
            "tau_sampled": f"{watched.tau_sampled:.4f}",
            "tau_greedy": f"{watched.tau_greedy:.4f}",
            "confidence_error": f"{watched.confidence_error:.4f}",
            "seconds": f"{self.seconds:.1f}",
        }
        slots = enumerate(watched.acceptance.tolist(), 1)
        return values | {f"acceptance_{k}": f"{value:.4f}" for k, value in slots}


class TrainingLog:
    """The log file of a run, which is begun anew or gone on with.

    Args:
        path: the CSV file.
        gamma: slots of a block.
        step: the step of the checkpoint that the run goes on from, -1 without any; later lines of
            the file are dropped.

    Raises:
        InputError: the file is damaged, or the log of blocks of another length.
    """

    def __init__(self, path: Path, gamma: int, step: int) -> None:
        self._path = path
        self._columns = [*FIELDS, *_acceptance(gamma)]
        rows = read_log(path)
        if rows and list(rows[0]) != self._columns:
            raise InputError(path, f"columns {', '.join(rows[0])}", ", ".join(self._columns))
        kept = [list(row.values()) for row in rows if int(row["step"]) <= step]
        write_text(path, "".join(",".join(line) + "\n" for line in [self._columns, *kept]))

    def add(self, entry: Entry) -> None:
        """Append a line; it is on disk when this returns.

        Raises:
            InputError: the file cannot be written to.
        """
        row = entry.row()
        line = ",".join(row[name] for name in self._columns) + "\n"
        with writing(self._path), self._path.open("a", newline="", encoding="utf-8") as file:
            file.write(line)


def read_log(path: Path) -> list[dict[str, str]]:
    """The lines of a log, each by column; none where there is no file.

    A last line without an end is left out: a full disk cut it off.

    Raises:
        InputError: the file is no text, has other columns, or a line (named by its number) has
            fewer or more values, an unknown kind, or text in the place of a number.
    """
    if not path.exists():
        return []
    lines = [line.removesuffix("\r") for line in read_text(path, "a run's log").split("\n")]
    if lines == [""]:
        return []
    columns = lines[0].split(",")
    if columns != [*FIELDS, *_acceptance(len(columns) - len(FIELDS))]:
        expected = f"{', '.join(FIELDS)}, acceptance_1, ..."
        raise InputError(path, f"columns {', '.join(columns)}", expected, _HINT)
    return [_row(f"{path}:{i}", columns, line) for i, line in enumerate(lines[1:-1], 2)]


def _row(where: str, columns: list[str], line: str) -> dict[str, str]:
    values = line.split(",")
    if len(values) != len(columns):
        raise InputError(where, f"{len(values)} values", f"{len(columns)}, one a column", _HINT)
    row = dict(zip(columns, values, strict=True))
    if row["kind"] not in KINDS:
        raise InputError(where, f"kind {row['kind']!r}", " or ".join(KINDS), _HINT)
    if not re.fullmatch("[0-9]{1,18}", row["step"]):
        raise InputError(where, f"step {row['step']!r}", "a whole number, 0 or more", _HINT)
    for name in columns[2:]:
        if not _is_number(row[name]):
            raise InputError(where, f"{name} {row[name]!r}", "a number", _HINT)
    return row


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _acceptance(gamma: int) -> list[str]:
    return [f"acceptance_{k}" for k in range(1, gamma + 1)]
