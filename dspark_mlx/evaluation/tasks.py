"""Reads the prompts of benchmark tasks, one file for each task, see `text.prompt_files`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.hub import resolve
from ..errors import InputError
from ..system.files import DATA
from ..text.prompt_files import read_prompts

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
    lines = {name: read_prompts(files[name])[:max_samples] for name in names}
    return [Task(name, tuple(line.turns for line in lines[name])) for name in names]


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
