"""Turns rounds into text: detokenizes, cuts at stop strings, and adds totals to each chunk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Protocol

from ..types import Chunk, Round
from .statistics import Tally


class Detokenizer(Protocol):
    """The members of mlx-lm's streaming detokenizers that `stream` uses."""

    @property
    def last_segment(self) -> str:
        """Text that became final since this property was last read."""
        ...

    def add_token(self, token: int) -> None:
        """Add one token id to the text."""
        ...

    def finalize(self) -> None:
        """Make all text final, as no token follows."""
        ...


class StopStrings:
    """Finds stop strings, and holds text back while it may be the beginning of one.

    Args:
        strings: strings that end the text; none of them is emitted.
    """

    def __init__(self, strings: Collection[str]) -> None:
        self._strings = tuple(strings)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Add text; returns the text that is final now and whether a stop string was found."""
        self._held += text
        starts = [start for start in map(self._held.find, self._strings) if start >= 0]
        if starts:
            return self._take(min(starts)), True
        held_back = max((_overlap(self._held, s) for s in self._strings), default=0)
        return self._take(len(self._held) - held_back), False

    def flush(self) -> str:
        """The text that is still held back; to be called when no more text comes."""
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
    """Yield one chunk per token; the last one has the finish reason and all text held back.

    Args:
        rounds: the rounds of one request, from `rounds.rounds`.
        detokenizer: a detokenizer that has taken no tokens yet.
        prompt_tokens: number of prompt tokens, for the statistics.
        max_tokens: the `max_tokens` of these rounds.
        stop_tokens: ids that end the text; their own text is not emitted.
        stop: strings that end the text; the text is cut just before them.
        on_round: called with every round before its tokens are emitted; None for no calls.
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
                # A stop string can end before a round's last token; later tokens do not count.
                statistics = replace(statistics, generation_tokens=count)
            logprobs = round_.logprobs[position] if round_.logprobs else None
            yield Chunk(text, token, from_draft, index, statistics, reason, logprobs)
            if reason:
                return


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` that is a beginning of `string`, but not all of it."""
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:length]):
            return length
    return 0
