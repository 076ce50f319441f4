"""Which files of kept prompts are read: the newest that fit, and those that they go on from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outline:
    """What is known of a file before its rows are read.

    Attributes:
        start: number of tokens before its first row.
        before: file of the node that ends there; None where its rows begin at the first token.
        nbytes: bytes that it will take in memory.
        written: when it was written, a number that grows.
    """

    start: int
    before: Path | None
    nbytes: int
    written: int


def newest_within(max_bytes: int, outlines: Mapping[Path, Outline]) -> set[Path]:
    """The newest files that take at most `max_bytes`, and no file without those before it.

    A file whose predecessor is missing is taken for one that has none; whoever reads it finds out.
    """
    taken: set[Path] = set()
    left = max_bytes
    for path in sorted(outlines, key=lambda path: (-outlines[path].written, path.name)):
        chain: set[Path] = set()
        at: Path | None = path
        # A foreign file may name itself.
        while at is not None and at in outlines and at not in taken | chain:
            chain.add(at)
            at = outlines[at].before
        needed = sum(outlines[each].nbytes for each in chain)
        if needed <= left:
            taken |= chain
            left -= needed
    return taken
