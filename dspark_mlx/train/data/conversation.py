"""A conversation that is being written, and the training sequences made of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .corpus import KEYS, Conversation
from .duplicates import exact_keys


@dataclass
class OpenConversation:
    """A conversation that is being written.

    Attributes:
        messages: the messages so far.
        temperature: temperature of its answers.
        thinking: whether answers begin with thinking; None where the template has no such setting.
        given: the user turns of the prompt that were not asked yet.
        own: number of user turns that the target may still write.
        near: near-duplicate keys of a first user turn that the target wrote, uint64 `[KEYS]`; zeros
            where the turn was given.
        tokens, answer: token ids and answer mask of the current sequence, up to an answer's end.
        written: the complete sequences.
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
        """Add an answer to the conversation.

        Args:
            prompt: token ids of the whole conversation before the answer.
            new: token ids of the answer.
            text: text of the answer.
        """
        if prompt[: len(self.tokens)] != self.tokens:
            # The template changed earlier messages; some drop earlier thinking. The target then
            # saw another sequence, in which only this answer is new.
            self.close()
        self.answer += [False] * (len(prompt) - len(self.tokens)) + [True] * len(new)
        self.tokens = prompt + new
        self.messages.append({"role": "assistant", "content": text})

    def close(self) -> None:
        """Complete the current sequence, if there is one."""
        if self.tokens:
            keys = exact_keys(self.tokens)
            keys[1:] = self.near[1:] if not self.written else 0
            tokens, answer = np.array(self.tokens), np.array(self.answer)
            self.written.append(Conversation(tokens, answer, keys))
        self.tokens, self.answer = [], []
