"""A run's journal: a CSV line every few steps and at every evaluation."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..system.files import write_text
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


@dataclass(frozen=True)
class Entry:
    """A line.

    Attributes:
        kind: "train" for the steps since the last line, "held-out" for an evaluation.
        step: steps done. epoch: times that every text was seen. learning_rate: of the last step.
        watched: see `Watched`.
        seconds: of training so far.
    """

    kind: str
    step: int
    epoch: float
    learning_rate: float
    watched: BlockMetrics
    seconds: float

    def row(self) -> dict[str, str]:
        """As text, by column."""
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


class Journal:
    """The file.

    Args:
        path: of the CSV file.
        gamma: slots of a block.
        step: of the checkpoint gone on from, -1 without any; later lines are dropped.

    Raises:
        InputError: the file is another's.
    """

    def __init__(self, path: Path, gamma: int, step: int) -> None:
        self._path = path
        self._fields = [*FIELDS, *(f"acceptance_{k}" for k in range(1, gamma + 1))]
        kept = [row for row in read_journal(path) if int(row["step"]) <= step]
        if kept and list(kept[0]) != self._fields:
            raise InputError(path, f"columns {', '.join(kept[0])}", ", ".join(self._fields))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._fields)
        writer.writeheader()
        writer.writerows(kept)
        write_text(path, text.getvalue())

    def add(self, entry: Entry) -> None:
        """Append a line; it is on disk when this returns.

        Raises:
            InputError: it cannot be written.
        """
        with writing(self._path), self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._fields).writerow(entry.row())


def read_journal(path: Path) -> list[dict[str, str]]:
    """Every line by column; none where there is no file.

    Raises:
        InputError: a file without the columns of a journal.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if rows and not set(FIELDS) <= set(rows[0]):
        raise InputError(path, f"columns {', '.join(rows[0])}", ", ".join(FIELDS))
    return rows
