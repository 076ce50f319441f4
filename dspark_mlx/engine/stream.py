"""Turns rounds into text: detokenizes, cuts at stop strings, and adds totals to each chunk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Protocol

from ..text.answer_parts import AnswerParts, Parts
from ..text.markers import earliest, undecided
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

    Attributes:
        found: the string that ended the text; None while none did.
    """

    def __init__(self, strings: Collection[str]) -> None:
        self.found: str | None = None
        self._strings = tuple(strings)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Add text; returns the text that is final now and whether a stop string was found."""
        self._held += text
        if found := earliest(self._held, self._strings):
            place, self.found = found
            return self._take(place), True
        return self._take(len(self._held) - undecided(self._held, self._strings)), False

    def flush(self) -> str:
        """The text that is still held back; to be called when no more text comes."""
        return self._take(len(self._held))

    def _take(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text


class TextStream:
    """The text of one request, to which rounds are pushed.

    Args:
        detokenizer: a detokenizer that has taken no tokens yet.
        prompt_tokens: number of prompt tokens, for the statistics.
        max_tokens: the `max_tokens` of these rounds.
        stop_tokens: ids that end the text; their own text is not emitted.
        stop: strings that end the text; the text is cut just before them.
        parts: splits the text; None for a text that is all content.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        *,
        prompt_tokens: int,
        max_tokens: int,
        stop_tokens: Collection[int],
        stop: Collection[str],
        parts: AnswerParts | None = None,
    ) -> None:
        self._detokenizer = detokenizer
        self._tally, self._strings = Tally(prompt_tokens), StopStrings(stop)
        self._max_tokens, self._stop_tokens = max_tokens, stop_tokens
        self._parts = parts
        self._count = self._accepted = self._round = 0

    def push(self, round_: Round) -> list[Chunk]:
        """The chunks of a round, one a token; the last one of the text has its finish reason."""
        self._tally.add(round_)
        statistics = self._tally.statistics()
        chunks: list[Chunk] = []
        for position, token in enumerate(round_.tokens):
            from_draft = position < round_.accepted
            self._count += 1
            self._accepted += from_draft
            text, reason = self._text(token)
            if reason:
                # A stop string can end before a round's last token; later tokens do not count.
                statistics = statistics.cut(self._count, self._accepted)
            parts = self._split(text, last=reason is not None)
            if reason == "stop" and self._parts is not None and self._parts.called:
                reason = "tool_calls"
            chunks.append(
                Chunk(
                    text,
                    token,
                    from_draft=from_draft,
                    round=self._round,
                    statistics=statistics,
                    finish_reason=reason,
                    logprobs=round_.logprobs[position] if round_.logprobs else None,
                    content=parts.content,
                    reasoning=parts.reasoning,
                    tool_calls=parts.tool_calls,
                    stop_string=self._strings.found,
                )
            )
            if reason:
                break
        self._round += 1
        return chunks

    def _text(self, token: int) -> tuple[str, str | None]:
        """Text that a token makes final, and why the text ends with it; None where it goes on."""
        ended = token in self._stop_tokens
        if not ended:
            self._detokenizer.add_token(token)
        text, stopped = self._strings.push(self._detokenizer.last_segment)
        last = self._count == self._max_tokens
        if not (ended or stopped or last):
            return text, None
        if not stopped:
            self._detokenizer.finalize()
            rest, stopped = self._strings.push(self._detokenizer.last_segment)
            text += rest if stopped else rest + self._strings.flush()
        return text, "stop" if ended or stopped else "length"

    def _split(self, text: str, last: bool) -> Parts:
        if self._parts is None:
            return Parts(content=text)
        parts = self._parts.push(text)
        if not last:
            return parts
        rest = self._parts.finish()
        return Parts(
            parts.content + rest.content,
            parts.reasoning + rest.reasoning,
            parts.tool_calls + rest.tool_calls,
        )


def stream(
    rounds: Iterator[Round],
    text: TextStream,
    on_round: Callable[[Round], None] | None = None,
) -> Iterator[Chunk]:
    """Yield one chunk per token; the last one has the finish reason and all text held back.

    Args:
        rounds: the rounds of one request, from `rounds.rounds`.
        text: a text that has taken no rounds yet.
        on_round: called with every round before its tokens are emitted; None for no calls.
    """
    for round_ in rounds:
        if on_round:
            on_round(round_)
        for chunk in text.push(round_):
            yield chunk
            if chunk.finish_reason:
                return
