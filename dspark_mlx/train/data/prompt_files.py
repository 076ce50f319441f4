"""Reads the prompts to answer: JSON lines with "turns" or "prompt", from a file or a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...system.files import read_json_lines


def read_prompt_turns(path: Path) -> tuple[tuple[str, ...], ...]:
    """The user turns of every prompt, in order of file names and lines.

    Args:
        path: a file, or a folder whose `*.jsonl` are read.

    Raises:
        InputError: there is nothing to read, or a line is neither {"turns": [text, ...]} nor
            {"prompt": text}; other fields are allowed.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise InputError(path, "no *.jsonl", "at least one file of prompts")
    lines = (line for file in files for line in read_json_lines(file, "JSON lines", "prompt"))
    return tuple(_turns(where, data) for where, data in lines)


def _turns(where: str, data: Any) -> tuple[str, ...]:
    turns = None
    if isinstance(data, dict):
        turns = data.get("turns", [data["prompt"]] if "prompt" in data else None)
    texts = isinstance(turns, list) and all(isinstance(t, str) and t.strip() for t in turns)
    if not texts or not turns:
        found = json.dumps(data, ensure_ascii=False)[:60]
        raise InputError(where, found, '{"turns": [text, ...]} or {"prompt": text}')
    return tuple(turns)
