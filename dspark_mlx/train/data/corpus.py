"""Texts to learn from: conversations, and many of them in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

KEYS = 9
"""Numbers a conversation is recognised by, see `duplicates`."""


@dataclass(frozen=True)
class Conversation:
    """One sequence to train on.

    Attributes:
        tokens: ids as the target's template writes them, `[length]`.
        answer: bool `[length]`, True where the target wrote the token as an answer.
        keys: uint64 `[KEYS]`, what duplicates of it would share; 0 matches nothing.
    """

    tokens: np.ndarray
    answer: np.ndarray
    keys: np.ndarray = field(default_factory=lambda: np.zeros(KEYS, dtype=np.uint64))


@dataclass(frozen=True)
class Corpus:
    """All conversations of a store in memory, flat.

    Attributes:
        tokens: uint16 or uint32 `[tokens]`, conversation after conversation.
        answer: bool `[tokens]`.
        offsets: int64 `[conversations + 1]`, where each begins, and the end of the last.
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
        """Tokens of each conversation, int64 `[conversations]`."""
        return np.diff(self.offsets)
