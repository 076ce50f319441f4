"""The tokens that a target writes most, and frequent_tokens.json, which ranks them for a drafter.

A draft vocabulary of the commonest tokens misses less than one of as many first ids (FR-Spec; Zhao
et al., 2025).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from ..system.files import read_json, untagged, write_json

FILE = "frequent_tokens.json"
FORMAT = "dspark_mlx.frequent_tokens"
FORMAT_VERSION = 1


def rank_tokens(
    tokens: np.ndarray, vocab_size: int, before: tuple[int, ...] = ()
) -> tuple[int, ...]:
    """Token ids, the most frequent first, of equally frequent ones the lower id.

    At most a quarter of the vocabulary, which is as much as any draft is cut down to by itself.

    Args:
        tokens: what the target wrote, ids `[tokens]`.
        vocab_size: of the target.
        before: an earlier ranking, which goes on where `tokens` say nothing.
    """
    ids, counts = np.unique(tokens, return_counts=True)
    ranked = ids[np.argsort(-counts, kind="stable")].tolist()
    return tuple(dict.fromkeys([*ranked, *before]))[: vocab_size // 4]


def write_ranking(folder: Path, ranking: tuple[int, ...]) -> Path:
    """Write frequent_tokens.json beside a drafter's config.json; returns its path."""
    data = {"format": FORMAT, "format_version": FORMAT_VERSION, "ids": list(ranking)}
    write_json(folder / FILE, data)
    return folder / FILE


def read_ranking(folder: Path, vocab_size: int) -> tuple[int, ...]:
    """The ranking beside a drafter; empty without any.

    Raises:
        InputError: another format or version, keys missing or unknown, or anything but distinct ids
            below `vocab_size`.
    """
    path = folder / FILE
    if not path.exists():
        return ()
    data = untagged(path, read_json(path), FORMAT, FORMAT_VERSION)
    ids = data.get("ids")
    if list(data) != ["ids"] or not isinstance(ids, list) or not ids:
        raise InputError(path, f"keys {', '.join(sorted(data))}", "ids, a list of them")
    bad = next((i for i in ids if type(i) is not int or not 0 <= i < vocab_size), None)
    if bad is not None:
        raise InputError(path, f"id {bad!r}", f"whole numbers from 0 to {vocab_size - 1}")
    if len(set(ids)) < len(ids):
        raise InputError(path, f"{len(ids) - len(set(ids))} ids twice", "each id once")
    return tuple(ids)
