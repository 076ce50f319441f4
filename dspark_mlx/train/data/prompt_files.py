"""Reads the prompts to answer, from a file or a folder."""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError
from ...text.prompt_files import read_prompts


def read_prompt_turns(path: Path) -> tuple[tuple[str, ...], ...]:
    """The user turns of every prompt, in order of file names and lines.

    Args:
        path: a file, or a folder whose `*.jsonl` are read.

    Raises:
        InputError: there is nothing to read; or see `read_prompts`.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise InputError(path, "no *.jsonl", "at least one file of prompts")
    return tuple(line.turns for file in files for line in read_prompts(file))
