"""Splits a target's text into content, reasoning and tool calls, as it arrives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..types import ToolCall
from .markers import earliest, undecided
from .tokenizer import Tokenizer
from .tool_calls import Parser, parse_tool_calls

_NORMAL, _REASONING, _TOOL = "normal", "reasoning", "tool"
# A template that opens the reasoning ends with its marker, at most a line break behind it.
_TAIL = 32


@dataclass(frozen=True)
class Parts:
    """A piece of an answer.

    Attributes:
        content: text for the user.
        reasoning: text that the target thinks in.
        tool_calls: calls that became complete.
    """

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Format:
    """The markers of a target's answers, in the states that mlx-lm names.

    Attributes:
        edges: by state, the markers that end it and the states that they begin.
        start: the state that an answer begins in.
        parser: reads what stands in the state "tool"; None without tools.
        tools: JSON schemas of the functions.
    """

    edges: Mapping[str, Sequence[tuple[str, str]]]
    start: str = _NORMAL
    parser: Parser | None = None
    tools: Sequence[Mapping[str, Any]] = ()


def answer_format(
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> Format:
    """The format of the answer to a prompt.

    Tool calls are looked for only where the request has tools and the tokenizer a parser.

    Args:
        tokenizer: the target's tokenizer, whose markers mlx-lm knows.
        prompt: the prompt's token ids, whose end tells whether the answer begins with reasoning.
        tools: JSON schemas of functions that the answer may call.
    """
    edges: dict[str, list[tuple[str, str]]] = {_NORMAL: [], _REASONING: []}
    calls = bool(tools) and tokenizer.has_tool_calling
    transitions = tokenizer.response_transitions
    if tokenizer.has_thinking:
        edges[_NORMAL].append((tokenizer.think_start, _REASONING))
        edges[_REASONING].append((tokenizer.think_end, _NORMAL))
    if calls:
        # A response format that leads to "tool" decides itself where calls begin.
        if not any(to == _TOOL for each in transitions.values() for _, to in each):
            edges[_NORMAL].append((tokenizer.tool_call_start, _TOOL))
        if tokenizer.has_thinking:
            edges[_REASONING].append((tokenizer.tool_call_start, _TOOL))
        if tokenizer.tool_call_end:
            edges[_TOOL] = [(tokenizer.tool_call_end, _NORMAL)]
    edges[_NORMAL] += [(marker, _NORMAL) for marker in tokenizer.structural_markers]
    for state, more in transitions.items():
        kept = [(marker, to) for marker, to in more if calls or to != _TOOL]
        edges.setdefault(state, []).extend(kept)
    start = tokenizer.response_initial_state or _NORMAL
    if tokenizer.has_thinking and _opens(tokenizer, prompt):
        start = _REASONING
    return Format(edges, start, tokenizer.tool_parser if calls else None, tools or ())


def _opens(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    return tokenizer.decode(prompt[-_TAIL:]).rstrip().endswith(tokenizer.think_start)


class AnswerParts:
    """Splits one answer; what may be the beginning of a marker is held back.

    Line breaks that follow a marker are left out, as templates leave them out of earlier answers.
    A call that the parser cannot read becomes content, markers included.

    Args:
        format: see `answer_format`.

    Attributes:
        called: whether the answer has a tool call so far.
    """

    def __init__(self, format: Format) -> None:
        self.called = False
        self._format = format
        self._state = format.start
        self._held = ""
        self._opening = ""
        self._after_marker = format.start != _NORMAL
        self._parts = Parts()

    def push(self, text: str) -> Parts:
        """Add text; returns the parts that are final now."""
        self._held += text
        self._parts = Parts()
        while found := earliest(self._held, [marker for marker, _ in self._edges]):
            place, marker = found
            before, self._held = self._held[:place], self._held[place + len(marker) :]
            self._leave(before, marker)
            self._state = dict(self._edges)[marker]
            self._opening, self._after_marker = marker, True
        if self._state != _TOOL:
            final = len(self._held) - undecided(self._held, [marker for marker, _ in self._edges])
            self._add(self._held[:final])
            self._held = self._held[final:]
        return self._parts

    def finish(self) -> Parts:
        """The rest, as no text follows: a call that is open ends here."""
        self._parts = Parts()
        rest, self._held = self._held, ""
        self._leave(rest, "")
        return self._parts

    @property
    def _edges(self) -> Sequence[tuple[str, str]]:
        return self._format.edges.get(self._state, ())

    def _leave(self, text: str, marker: str) -> None:
        """End the state: add its text, or the calls in it."""
        if self._state != _TOOL or not text:
            self._add(text)
            return
        assert self._format.parser is not None
        calls = parse_tool_calls(text, self._format.parser, self._format.tools)
        if calls:
            self.called = True
            self._join(tool_calls=calls)
        else:
            self._join(content=f"{self._opening}{text}{marker}")

    def _add(self, text: str) -> None:
        if self._after_marker:
            text = text.lstrip("\n")
        if not text:
            return
        self._after_marker = False
        if self._state == _REASONING:
            self._join(reasoning=text)
        elif self._state == _NORMAL:
            self._join(content=text)
        # The text of other states, as of a header, is for nobody.

    def _join(
        self, content: str = "", reasoning: str = "", tool_calls: tuple[ToolCall, ...] = ()
    ) -> None:
        parts = self._parts
        self._parts = Parts(
            parts.content + content, parts.reasoning + reasoning, parts.tool_calls + tool_calls
        )
