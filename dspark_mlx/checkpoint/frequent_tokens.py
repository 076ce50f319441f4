"""The tokens that a target writes most often, kept in a drafter's frequent_tokens.json.

A reduced draft vocabulary of the most frequent tokens misses fewer of the target's tokens than one
of the first ids of the same size (FR-Spec; Zhao et al., 2025).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from ..system.files import check_format, read_json, write_json

FILE = "frequent_tokens.json"
FORMAT = "dspark_mlx.frequent_tokens"
FORMAT_VERSION = 1


def rank_tokens(
    tokens: np.ndarray, vocab_size: int, before: tuple[int, ...] = ()
) -> tuple[int, ...]:
    """Token ids, the most frequent first; of equally frequent ones the lower id comes first.

    The ranking holds at most a quarter of the vocabulary: "auto" never makes a draft vocabulary
    larger than that.

    Args:
        tokens: ids of the tokens that the target wrote, `[tokens]`.
        vocab_size: size of the target's vocabulary.
        before: an earlier ranking, whose remaining ids follow those found in `tokens`.
    """
    ids, counts = np.unique(tokens, return_counts=True)
    ranked = ids[np.argsort(-counts, kind="stable")].tolist()
    return tuple(dict.fromkeys([*ranked, *before]))[: vocab_size // 4]


def write_ranking(folder: Path, ranking: tuple[int, ...]) -> Path:
    """Write frequent_tokens.json beside a drafter's config.json, and return its path."""
    data = {"format": FORMAT, "format_version": FORMAT_VERSION, "ids": list(ranking)}
    write_json(folder / FILE, data)
    return folder / FILE


def read_ranking(folder: Path, vocab_size: int) -> tuple[int, ...]:
    """The ranking in a drafter's folder; empty where the folder has none.

    Raises:
        InputError: the file has another format or version, keys are missing or unknown, or the ids
            are not distinct ids below `vocab_size`.
    """
    path = folder / FILE
    if not path.exists():
        return ()
    data = check_format(path, read_json(path), FORMAT, FORMAT_VERSION)
    ids = data.get("ids")
    if list(data) != ["ids"] or not isinstance(ids, list) or not ids:
        raise InputError(path, f"keys {', '.join(sorted(data))}", "ids, a list of them")
    bad = next((i for i in ids if type(i) is not int or not 0 <= i < vocab_size), None)
    if bad is not None:
        raise InputError(path, f"id {bad!r}", f"whole numbers from 0 to {vocab_size - 1}")
    if len(set(ids)) < len(ids):
        raise InputError(path, f"{len(ids) - len(set(ids))} ids twice", "each id once")
    return tuple(ids)
