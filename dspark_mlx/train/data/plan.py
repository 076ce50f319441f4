"""The settings of training texts: where prompts come from, how they are answered, and how many."""

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

    Without a limit (`conversations`, `answer_tokens`, `seconds`), every prompt is answered once.

    Attributes:
        prompts: the prompts to answer, each a tuple of user turns.
        self_written: share of the conversations whose user turns the target writes itself; some of
            these turns are unusable, and their conversations are dropped. It is 1 without prompts.
        continued: share of the self-written first turns that begin with the first words of a
            prompt; not used without prompts.
        imitated: share of the self-written first turns that the target writes after `examples`
            prompts, so that it asks questions of their kind (self-instruct; Wang et al., 2023, in
            the target's own template); not used without prompts.
        examples: number of prompts shown; they are consecutive ones, which are of one kind where
            the files are sorted by kind.
        follow_up: probability that a self-written conversation goes on after an answer.
        most_turns: most user turns of a self-written conversation.
        temperatures: pairs of a temperature and its weight; each conversation draws one for its
            answers.
        user_min_p: lowest probability of a token in self-written user turns, as a share of the most
            probable one's; they are drawn at temperature 1, where a small target's rare tokens make
            nonsense.
        thinking: share of the conversations with thinking, where the template knows
            `enable_thinking`.
        max_user, max_answer, max_length: most tokens of a self-written user turn, of an answer, and
            of a conversation.
        conversations: number of conversations in the store to stop at; None for no such limit.
        answer_tokens: number of answer tokens in the store to stop at, which the last shard may
            exceed; None for no such limit.
        seconds: seconds after which no further shard begins; None for no such limit.
        seed: seed of all random numbers.
        shard: most conversations that are begun for a shard; a killed run loses at most one shard.
        rows: most sequences that are decoded together; memory grows with it.
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
        """Refuse settings outside their range.

        Raises:
            InputError: a share is not from 0 to 1, a number is below 1, a temperature or weight is
                below 0, or there is no limit though the target writes prompts itself.
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
        """Share of the conversations whose user turns the target writes."""
        return self.self_written if self.prompts else 1.0

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return any(getattr(self, name) is not None for name in _BUDGETS)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that a shard's content depends on, as JSON values, without the seed.

        Limits are left out, so that a run can go on with higher ones.
        """
        data = dataclasses.asdict(self)
        for name in (*_BUDGETS, "seed"):
            del data[name]
        prompts = json.dumps(data["prompts"], ensure_ascii=False)
        data["prompts"] = hashlib.sha256(prompts.encode()).hexdigest()
        data["temperatures"] = [list(pair) for pair in self.temperatures]
        return data
