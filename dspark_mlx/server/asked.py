"""A request as every dialect asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..decoder import Prompt


@dataclass(frozen=True)
class Asked:
    """A request of any dialect.

    Attributes:
        prompts: its prompts; only completions have several.
        settings: the decoder's settings that it names.
        max_tokens: longest answer; None for the server's default.
        stop: strings that end an answer.
        choices: number of answers to each prompt.
        tools: functions that may be called, in OpenAI's form; None for none.
        must_call: names of the tools of which the answer calls one; empty where it may do without.
        one_call: whether an answer ends with its first call.
        thinking: whether the target thinks first; None leaves that to the template.
        template_kwargs: variables of the chat template.
        schema: JSON schema that answers follow.
        raw: whether an answer is all text, without reasoning and calls.
        stream: whether the answer is sent while it is made.
    """

    prompts: Sequence[Prompt]
    settings: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    choices: int = 1
    tools: Sequence[Mapping[str, Any]] | None = None
    must_call: tuple[str, ...] = ()
    one_call: bool = False
    thinking: bool | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    schema: Mapping[str, Any] | None = None
    raw: bool = False
    stream: bool = False

    @property
    def by_grammar(self) -> bool:
        """Whether a grammar holds from the answer's first token on."""
        return self.schema is not None or bool(self.must_call)
