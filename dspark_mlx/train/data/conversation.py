"""A conversation while it is written, and the sequences that it leaves to learn from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .corpus import KEYS, Conversation
from .duplicates import exact_keys


@dataclass
class OpenConversation:
    """A conversation while it is written.

    Attributes:
        messages: so far. temperature, thinking: of its answers.
        given: user turns still to be asked. own: user turns that the target may still write.
        near: keys of its first user turn, zeros where that was given.
        tokens, answer: of the sequence so far, up to the end of an answer.
        written: sequences that are complete.
        open: whether another answer is to be written.
    """

    messages: list[dict[str, Any]]
    temperature: float
    thinking: bool | None
    given: list[str]
    own: int
    near: np.ndarray = field(default_factory=lambda: np.zeros(KEYS, dtype=np.uint64))
    tokens: list[int] = field(default_factory=list)
    answer: list[bool] = field(default_factory=list)
    written: list[Conversation] = field(default_factory=list)
    open: bool = True

    def take(self, prompt: list[int], new: list[int], text: str) -> None:
        """Add an answer, and what the template wrote before it."""
        if prompt[: len(self.tokens)] != self.tokens:
            # The template changed what is past, as those that drop earlier thinking do: what the
            # target saw from here on is another sequence, in which only this answer is new.
            self.close()
        self.answer += [False] * (len(prompt) - len(self.tokens)) + [True] * len(new)
        self.tokens = prompt + new
        self.messages.append({"role": "assistant", "content": text})

    def close(self) -> None:
        """Complete the sequence so far."""
        if self.tokens:
            keys = exact_keys(self.tokens)
            keys[1:] = self.near[1:] if not self.written else 0
            tokens, answer = np.array(self.tokens), np.array(self.answer)
            self.written.append(Conversation(tokens, answer, keys))
        self.tokens, self.answer = [], []
