"""Rounds to text: detokenise, cut at stop strings, give the finish reason and the statistics."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Protocol

from ..types import Chunk, Round
from .statistics import Tally


class Detokenizer(Protocol):
    """The part of mlx-lm's streaming detokenizers that is used here."""

    @property
    def last_segment(self) -> str:
        """Text that became final since the last look."""
        ...

    def add_token(self, token: int) -> None:
        """Take in one token id."""
        ...

    def finalize(self) -> None:
        """Release what was held back."""
        ...


class StopStrings:
    """Holds text back while it may be the beginning of a stop string.

    Args:
        strings: any of them ends the text; none is ever emitted.
    """

    def __init__(self, strings: Collection[str]) -> None:
        self._strings = tuple(strings)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Take text in; returns what is final now and whether a stop string was found."""
        self._held += text
        found = [at for at in (self._held.find(s) for s in self._strings) if at >= 0]
        if found:
            return self._take(min(found)), True
        held_back = max((_overlap(self._held, s) for s in self._strings), default=0)
        return self._take(len(self._held) - held_back), False

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        return self._take(len(self._held))

    def _take(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text


def stream(
    rounds: Iterator[Round],
    detokenizer: Detokenizer,
    *,
    prompt_tokens: int,
    max_tokens: int,
    stop_tokens: Collection[int],
    stop: Collection[str],
    on_round: Callable[[Round], None] | None = None,
) -> Iterator[Chunk]:
    """One chunk per token; the last one has the finish reason and the text held back.

    Args:
        rounds: of one request, as `rounds.rounds` yields them.
        detokenizer: fresh.
        prompt_tokens: for the statistics.
        max_tokens: as the rounds were given it.
        stop_tokens: ids that end the text and add none to it.
        stop: strings that end the text just before them.
        on_round: called with every round before its tokens are emitted.
    """
    tally, strings = Tally(prompt_tokens), StopStrings(stop)
    count = 0
    for index, round_ in enumerate(rounds):
        tally.add(round_)
        if on_round:
            on_round(round_)
        statistics = tally.statistics()
        for position, token in enumerate(round_.tokens):
            count += 1
            ended = token in stop_tokens
            if not ended:
                detokenizer.add_token(token)
            text, stopped = strings.push(detokenizer.last_segment)
            reason = "stop" if ended or stopped else "length" if count == max_tokens else None
            if reason and not stopped:
                detokenizer.finalize()
                rest, stopped = strings.push(detokenizer.last_segment)
                text += rest if stopped else rest + strings.flush()
                reason = "stop" if stopped else reason
            from_draft = position < round_.accepted
            if reason:
                # A stop string can end inside a round, whose later tokens are dropped.
                statistics = replace(statistics, generation_tokens=count)
            logprobs = round_.logprobs[position] if round_.logprobs else None
            yield Chunk(text, token, from_draft, index, statistics, reason, logprobs)
            if reason:
                return


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `string`."""
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:length]):
            return length
    return 0
