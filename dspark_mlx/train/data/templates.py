"""Prompts in the target's chat template, for its answers and for user turns that it writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...decoder import Decoder, Messages
from ...errors import InputError

_MARK = "@@user@turn@@"


class Template:
    """Makes token ids of conversations with the target's chat template.

    Args:
        decoder: a decoder of the target.

    Attributes:
        knows_thinking: whether the template reads `enable_thinking`.
        answer_stops: ids that end an answer.
        user_stops: ids that end a user turn.

    Raises:
        InputError: the target has no chat template, or the template changes a user's text.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._tokenizer = decoder.tokenizer
        self._folder = decoder.target_folder
        if not self._tokenizer.has_chat_template:
            hint = "Conversations are written in the target's own template: use a chat model."
            raise InputError(self._folder, "no chat template", "one", hint)
        self.knows_thinking = "enable_thinking" in str(self._tokenizer.chat_template)
        self.answer_stops = decoder.stop_tokens
        self.user_stops = self.answer_stops | self._turn_end()
        self._alternates = self._wants_answers()

    def prompt(self, messages: Messages, thinking: bool | None) -> list[int]:
        """Token ids of the messages, up to where the answer to the last one begins."""
        return self._encode(self._render(messages, thinking))

    def user_turn(self, messages: Messages, beginning: str = "") -> list[int]:
        """Token ids after which the target writes the next user turn.

        Args:
            messages: the messages before that turn.
            beginning: text that the turn begins with.
        """
        text = self._render([*messages, {"role": "user", "content": _MARK}], None)
        return self._encode(text.rpartition(_MARK)[0] + beginning)

    def asked(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Messages of the given user turns; with empty answers between them if the template
        requires answers."""
        turns = [{"role": "user", "content": text} for text in texts]
        if not self._alternates:
            return turns
        answer = {"role": "assistant", "content": ""}
        return [message for turn in turns for message in (turn, answer)]

    def text(self, tokens: Sequence[int], before: Sequence[int] = ()) -> str:
        """The text of ids that continue `before`, without stop tokens at their end."""
        end = len(tokens)
        while end and tokens[end - 1] in self.user_stops:
            end -= 1
        # Some tokenizers drop the space in front of a text's first word.
        start = self._tokenizer.decode(list(before))
        return self._tokenizer.decode([*before, *tokens[:end]])[len(start) :]

    def is_plain(self, tokens: Sequence[int]) -> bool:
        """Whether no special token is among the ids."""
        return not self._special.intersection(tokens)

    @property
    def _special(self) -> frozenset[int]:
        added = self._tokenizer.added_tokens_decoder
        special = {token for token, what in added.items() if what.special}
        return frozenset(special | set(self._tokenizer.all_special_ids))

    def _turn_end(self) -> set[int]:
        """The special token that the template writes right after a user's text; empty for none."""
        text = self._render([{"role": "user", "content": _MARK}], None)
        if _MARK not in text:
            found = "a chat template that changes a user's text"
            raise InputError(self._folder, found, "one that writes it as it is")
        after = self._encode(text.rpartition(_MARK)[2])
        return set(after[:1]) & self._special

    def _wants_answers(self) -> bool:
        """Whether the template refuses two user turns without an answer between them."""
        try:
            self._render([{"role": "user", "content": _MARK}] * 2, None)
        except InputError:
            return True
        return False

    def _render(self, messages: Messages, thinking: bool | None) -> str:
        options: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
        rendered = self._tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, **options
        )
        assert isinstance(rendered, str)
        return rendered

    def _encode(self, text: str) -> list[int]:
        # The template writes every special token itself.
        return list(self._tokenizer.encode(text, add_special_tokens=False))
