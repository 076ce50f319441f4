"""What conversations to write: where prompts come from, how they are answered, and how many."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

from ...errors import InputError

_BUDGETS = ("conversations", "answer_tokens", "seconds")
_SHARES = ("self_written", "continued", "imitated", "follow_up", "user_min_p", "thinking")
_COUNTS = ("examples", "most_turns", "max_user", "max_answer", "max_length", "shard", "rows")


@dataclass(frozen=True)
class DataPlan:
    """Settings of `write_conversations`.

    Without any budget, every prompt is answered once.

    Attributes:
        prompts: user turns of each prompt to answer.
        self_written: share of the conversations begun whose user turns the target writes itself,
            some of which come to nothing; taken as 1 without prompts.
        continued: share of those that begin with the first words of a prompt, where there are any.
        imitated: share of those that are written after `examples` given prompts, where there are
            any: a target goes on with questions of the kind it was shown (self-instruct; Wang et
            al., 2023, in the target's own template).
        examples: prompts shown, consecutive ones, which are of one kind where files are.
        follow_up: chance that a self-written conversation goes on after each answer.
        most_turns: user turns of a self-written conversation at most.
        temperatures: (temperature, weight) of answers; one is drawn for each conversation.
        user_min_p: self-written user turns are drawn at temperature 1 from tokens at least this
            share as probable as the most probable one; a small target's rarer ones read as noise.
        thinking: share that thinks, where the template knows `enable_thinking`.
        max_user, max_answer, max_length: tokens of a self-written user turn, of an answer and of a
            conversation at most.
        conversations, answer_tokens: the store's size to stop at, the second one to be exceeded by
            what the last shard brings. seconds: to begin no further shard after.
        seed: of all randomness.
        shard: conversations begun for a shard at most; what a killed run loses.
        rows: sequences decoded at once at most; memory grows with it.
    """

    prompts: tuple[tuple[str, ...], ...] = ()
    self_written: float = 0.0
    continued: float = 0.5
    imitated: float = 0.0
    examples: int = 3
    follow_up: float = 0.25
    most_turns: int = 3
    temperatures: tuple[tuple[float, float], ...] = ((0.0, 1), (0.3, 1), (0.7, 1), (1.0, 1))
    user_min_p: float = 0.05
    thinking: float = 0.5
    max_user: int = 256
    max_answer: int = 512
    max_length: int = 1024
    conversations: int | None = None
    answer_tokens: int | None = None
    seconds: float | None = None
    seed: int = 0
    shard: int = 1024
    rows: int = 256

    def check(self) -> None:
        """Refuse settings that cannot be meant.

        Raises:
            InputError: a share outside of 0 to 1, a number below 1, a temperature or weight below
                0, or no budget though the target is to write prompts itself.
        """
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(name, getattr(self, name), "a share from 0 to 1")
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "at least 1")
        if self.seed < 0:
            raise InputError("seed", self.seed, "0 or more")
        numbers = [number for pair in self.temperatures for number in pair]
        finite = all(math.isfinite(number) and number >= 0 for number in numbers)
        if not finite or not sum(weight for _, weight in self.temperatures) > 0:
            raise InputError(
                "temperatures", self.temperatures, "(temperature, weight) of 0 or more"
            )
        for name in _BUDGETS:
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise InputError(name, getattr(self, name), "more than 0")
        if self.share > 0 and not self.limited:
            found = "no limit to what the target writes"
            raise InputError("plan", found, f"one of {', '.join(_BUDGETS)}")

    @property
    def share(self) -> float:
        """Of conversations whose user turns the target writes."""
        return self.self_written if self.prompts else 1.0

    @property
    def limited(self) -> bool:
        """Whether there is any budget."""
        return any(getattr(self, name) is not None for name in _BUDGETS)

    @property
    def settings(self) -> dict[str, Any]:
        """What the content of a shard depends on, as JSON values; budgets and seed left out."""
        data = dataclasses.asdict(self)
        for name in (*_BUDGETS, "seed"):
            del data[name]
        prompts = json.dumps(data["prompts"], ensure_ascii=False)
        data["prompts"] = hashlib.sha256(prompts.encode()).hexdigest()
        data["temperatures"] = [list(pair) for pair in self.temperatures]
        return data
