"""Reads the prompts of a benchmark or a calibration: JSON lines with "task" and "prompt"."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import InputError
from ..system.files import DATA, read_json_lines

SAMPLE = DATA / "bench_prompts.jsonl"
"""The file of prompts that ships with the package."""


def read_prompts(path: Path) -> list[dict[str, str]]:
    """The objects in a file of JSON lines, each with a text "task" and a text "prompt".

    Raises:
        InputError: the file is missing or empty, or a line is not such an object.
    """
    prompts = []
    for where, prompt in read_json_lines(path, "JSON lines", "prompt"):
        texts = isinstance(prompt, dict) and (prompt.get("task"), prompt.get("prompt"))
        if not texts or not all(isinstance(text, str) for text in texts):
            found = json.dumps(prompt, ensure_ascii=False)[:60]
            raise InputError(where, found, 'an object with "task" and "prompt", both text')
        prompts.append(prompt)
    return prompts
