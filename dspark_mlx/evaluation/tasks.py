"""Reads the prompts of benchmark tasks: JSON lines in DeepSpec's format, one file for each task.

A line is an object with "turns", the user's messages in order; other fields are not read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.hub import resolve
from ..errors import InputError
from ..system.files import DATA, read_json_lines

NAMES = (
    "gsm8k",
    "math500",
    "aime25",
    "humaneval",
    "mbpp",
    "livecodebench",
    "mt-bench",
    "alpaca",
    "arena-hard",
)
"""DeepSpec's tasks, in its order."""
SHIPPED = DATA / "evaluation"
SHIPPED_NAMES = tuple(name for name in NAMES if (SHIPPED / f"{name}.jsonl").is_file())
"""Those whose prompts ship with this package."""
_FILE_NAMES = {"arena-hard-v2": "arena-hard"}


@dataclass(frozen=True)
class Task:
    """A benchmark task.

    Attributes:
        name: name of the task.
        prompts: for each conversation, the user's messages; at least one.
    """

    name: str
    prompts: tuple[tuple[str, ...], ...]


def read_tasks(
    names: Sequence[str] | None = None,
    source: str | Path | None = None,
    max_samples: int | None = None,
) -> list[Task]:
    """The tasks with the given names, and their prompts.

    Args:
        names: names of the tasks; None for all that the source has.
        source: a file (a task with the file's name), a folder of such files, or a dataset
            repository of the Hub, owner/name or owner/name@revision; None for the sample that ships
            with this package.
        max_samples: most prompts of a task, the first ones of its file; None for all.

    Raises:
        InputError: there is no such source or task, or a file does not hold prompts.
    """
    files = _files(source)
    known = [name for name in NAMES if name in files]
    there = known + sorted(set(files) - set(known))
    names = there if names is None else names
    for name in names:
        if name not in files:
            raise _no_task(name, there, source)
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise InputError("--tasks", f"{twice[0]} twice", "every task once")
    tasks = [Task(name, read_task_turns(files[name])) for name in names]
    return [Task(task.name, task.prompts[:max_samples]) for task in tasks]


def read_task_turns(path: Path) -> tuple[tuple[str, ...], ...]:
    """The user's messages of every conversation in a file.

    Raises:
        InputError: the file cannot be read, or a line has no turns; the line's number is named.
    """
    return tuple(_turns(*line) for line in read_json_lines(path, "JSON lines", "prompt"))


def _turns(where: str, line: Any) -> tuple[str, ...]:
    turns = line.get("turns") if isinstance(line, dict) else None
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) for t in turns):
        found = json.dumps(line, ensure_ascii=False)[:60]
        raise InputError(where, found, 'an object with "turns", a list of strings')
    if not all(turn.strip() for turn in turns):
        raise InputError(where, "an empty turn", "text in every turn")
    return tuple(turns)


def _files(source: str | Path | None) -> dict[str, Path]:
    """The file of each task."""
    folder = SHIPPED if source is None else resolve(source, dataset=True)
    paths = [folder] if folder.is_file() else sorted(folder.rglob("*.jsonl"))
    if not paths:
        raise InputError(source, "no .jsonl file in it", "a file for each task, as gsm8k.jsonl")
    files: dict[str, Path] = {}
    for path in paths:
        name = _FILE_NAMES.get(path.stem, path.stem)
        if name in files:
            found = f"{files[name].relative_to(folder)} and {path.relative_to(folder)}"
            raise InputError(source, found, f"one file for {name}")
        files[name] = path
    return files


def _no_task(name: str, there: Sequence[str], source: str | Path | None) -> InputError:
    expected = f"one of {', '.join(there)}"
    if source is None and name in NAMES:
        hint = "Pass a folder or a dataset of the Hub that has it with --prompts."
        return InputError(
            "--tasks", f"{name}, which this package has no prompts of", expected, hint
        )
    return InputError("--tasks", f"{name!r}, no task of {source or 'this package'}", expected)
