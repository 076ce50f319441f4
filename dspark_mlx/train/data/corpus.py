"""Training texts in memory: a conversation, and a corpus of many."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

KEYS = 9
"""Number of keys by which duplicates of a conversation are found, see `duplicates`."""


@dataclass(frozen=True)
class Conversation:
    """One sequence to train on.

    Attributes:
        tokens: token ids in the target's chat template, `[length]`.
        answer: True where the target wrote the token as an answer, bool `[length]`.
        keys: duplicates share at least one of these, uint64 `[KEYS]`; 0 matches nothing.
    """

    tokens: np.ndarray
    answer: np.ndarray
    keys: np.ndarray = field(default_factory=lambda: np.zeros(KEYS, dtype=np.uint64))


@dataclass(frozen=True)
class Corpus:
    """All conversations of a store in memory, one after the other in flat arrays.

    Attributes:
        tokens: token ids, uint16 or uint32 `[tokens]`.
        answer: True where the target wrote the token as an answer, bool `[tokens]`.
        offsets: where each conversation begins, and the end of the last, int64
            `[conversations + 1]`.
    """

    tokens: np.ndarray
    answer: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Conversation:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        start, end = self.offsets[index % len(self) :][:2]
        return Conversation(self.tokens[start:end], self.answer[start:end])

    def __iter__(self) -> Iterator[Conversation]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each conversation, int64 `[conversations]`."""
        return np.diff(self.offsets)
