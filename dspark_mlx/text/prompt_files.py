"""Reads prompts: JSON lines, in the one form that every command takes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..system.files import DATA, read_json_lines

SAMPLE = DATA / "bench_prompts.jsonl"
"""The file of prompts that ships with the package."""


@dataclass(frozen=True)
class PromptLine:
    """One line of a file of prompts.

    Attributes:
        task: what tables group it by.
        turns: the user's messages of one conversation, in order; at least one, each with text.
    """

    task: str
    turns: tuple[str, ...]


def read_prompts(path: Path) -> list[PromptLine]:
    """The prompts in a file, in its order.

    Args:
        path: JSON lines, each {"turns": [text, ...]} or {"prompt": text}; a text "task" stands in
            the place of the file's name, other fields are not read.

    Raises:
        InputError: the file is missing or empty, or a line, which is named, is no such object.
    """
    lines = read_json_lines(path, "JSON lines", "prompt")
    return [_line(where, data, path.stem) for where, data in lines]


def _line(where: str, data: Any, task: str) -> PromptLine:
    fields = data if isinstance(data, dict) else {}
    turns = fields.get("turns", [fields["prompt"]] if "prompt" in fields else None)
    texts = isinstance(turns, list) and all(isinstance(turn, str) for turn in turns)
    if not turns or not texts:
        found = json.dumps(data, ensure_ascii=False)[:60]
        raise InputError(where, found, '{"prompt": text} or {"turns": [text, ...]}')
    if not all(turn.strip() for turn in turns):
        raise InputError(where, "an empty turn", "text in every turn")
    named = fields.get("task")
    return PromptLine(named if isinstance(named, str) else task, tuple(turns))
