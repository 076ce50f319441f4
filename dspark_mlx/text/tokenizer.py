"""The target's tokenizer and chat template.

Only this module calls transformers' and mlx-lm's tokenizers. What they raise becomes an
`InputError` of one line.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mlx_lm.utils import load_tokenizer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..errors import InputError
from ..numbers import shown, token_ids
from ..system.strict_json import check_text
from .chat_template import Refusal, render
from .detokenizer import Detokenizer
from .foreign import Refusing, reason
from .messages import check_messages, has_parts
from .tokenizer_files import blame, check_tokenizer, set_apart

_THINKING = "enable_thinking"


class Tokenizer:
    """Turns text into token ids and back, and chat messages into a prompt.

    Other attributes are those of mlx-lm's tokenizer `wrapped`, and of the Hugging Face tokenizer
    that it wraps.

    Args:
        folder: the target's folder, for errors.
        wrapped: mlx-lm's tokenizer.
    """

    def __init__(self, folder: Path, wrapped: Any) -> None:
        self._folder = folder
        self.wrapped = wrapped
        # Encoding changes settings inside a fast tokenizer, which refuses two such threads at once.
        self._lock = threading.RLock()

    @classmethod
    def load(cls, folder: Path, end_tokens: Collection[int] = ()) -> Tokenizer:
        """The tokenizer in a checkpoint's folder; no code from the folder is run.

        Args:
            folder: folder with the tokenizer's files.
            end_tokens: ids that end a text, from the model's configs.

        Raises:
            InputError: there is no tokenizer, it needs code of its own, or its files are damaged.
        """
        check_tokenizer(folder)
        with set_apart(folder) as apart:
            try:
                with Refusing(folder, "a tokenizer that cannot be read", "whole tokenizer files"):
                    wrapped = load_tokenizer(
                        apart,
                        {"trust_remote_code": False, "local_files_only": True},
                        eos_token_ids=sorted(end_tokens) or None,
                    )
            except InputError:
                blame(folder)
                raise
        return cls(folder, wrapped)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "wrapped":
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def __len__(self) -> int:
        return len(self.wrapped)

    @property
    def hugging_face(self) -> Any:
        """The Hugging Face tokenizer."""
        return self.wrapped._tokenizer

    @property
    def end_tokens(self) -> frozenset[int]:
        """Ids that end a text: those given to `load` and the one in the tokenizer's files."""
        return frozenset(self.wrapped.eos_token_ids)

    @property
    def detokenizer(self) -> Detokenizer:
        """A new detokenizer, for ids that begin a text."""
        return self.detokenizer_after(())

    def detokenizer_after(self, before: Sequence[int]) -> Detokenizer:
        """A new detokenizer, for ids that continue others.

        Args:
            before: the ids before them.
        """
        return Detokenizer(self.decode, before)

    def token_id(self, token: str) -> int:
        """The id of a token of the vocabulary.

        Args:
            token: its text as the vocabulary has it, or its id in digits.

        Raises:
            InputError: the vocabulary does not have it.
        """
        vocabulary = self.wrapped.get_vocab()
        if token in vocabulary:
            return int(vocabulary[token])
        if token.isdecimal() and len(token) < 20 and int(token) in self._known:
            return int(token)
        raise InputError("token", shown(token), "a token of the target's vocabulary, or its id")

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        Raises:
            InputError: the text holds a surrogate, or the tokenizer cannot encode it.
        """
        check_text("text", text)
        refusing = Refusing(
            self._folder, "a tokenizer that cannot encode", "one that takes any text"
        )
        with self._lock, refusing:
            return list(self.hugging_face.encode(text, add_special_tokens=add_special_tokens))

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text that the target is to continue.

        They begin with the tokenizer's beginning-of-text token once, where it has one, and do not
        have the end token that some tokenizers append.

        Raises:
            InputError: see `encode`.
        """
        check_text("prompt", text)
        first = self.wrapped.bos_token
        if first is not None and text.startswith(first):
            return self.encode(text, add_special_tokens=False)
        ids, last = self.encode(text), self._appended
        return ids[: -len(last)] if last and ids[-len(last) :] == last else ids

    @cached_property
    def _appended(self) -> list[int]:
        """The end tokens that the tokenizer appends to every text."""
        ids, alone = self.encode("a"), self.encode("a", add_special_tokens=False)
        for start in range(len(ids) - len(alone) + 1):
            behind = ids[start + len(alone) :]
            if alone and ids[start : start + len(alone)] == alone and behind:
                return behind if set(behind) <= self.end_tokens else []
        return []

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        """The text of token ids; ids that the tokenizer does not have are left out.

        Args:
            ids: token ids.
            options: settings of transformers' `decode`, such as `skip_special_tokens`.

        Raises:
            InputError: `ids` are not token ids, or the tokenizer cannot decode them.
        """
        known = [token for token in token_ids("ids", ids) if token in self._known]
        refusing = Refusing(
            self._folder, "a tokenizer that cannot decode", "one that decodes its ids"
        )
        # Not locked: it changes no settings, and answers must not wait while a prompt is encoded.
        with refusing:
            return str(self.hugging_face.decode(known, **options))

    @cached_property
    def _known(self) -> frozenset[int]:
        return frozenset(self.wrapped.get_vocab().values())

    def apply_chat_template(
        self,
        messages: Sequence[Any],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        continue_final_message: bool = False,
        images: bool = False,
        **variables: Any,
    ) -> Any:
        """The prompt that the chat template makes of messages: token ids, or text.

        Args:
            messages: see `messages.check_messages`.
            tools: JSON schemas of functions that the answer may call.
            add_generation_prompt: whether the prompt ends with the beginning of an answer.
            tokenize: True for token ids, False for text.
            continue_final_message: whether the prompt ends where the last message's text does, so
                that the answer continues it.
            images: see `messages.check_messages`.
            variables: further variables of the template, such as `enable_thinking`.

        Raises:
            InputError: there are no messages, they are malformed, the template refuses them, the
                template fails or does not end, or the tokenizer has no template.
        """
        checked = check_messages(messages, images)
        if not checked:
            raise InputError("messages", "none", "at least one message")
        if not self.wrapped.has_chat_template:
            raise InputError(self._folder, "no chat template", "one, for chat messages")
        given = {"tools": tools, "add_generation_prompt": add_generation_prompt, **variables}
        try:
            text = self._write(checked, given)
        except Refusal as error:
            found = f"messages that the chat template refuses ({reason(error)})"
            raise InputError(self._folder, found, self._wanted(checked)) from error
        if continue_final_message:
            text = _cut_behind(text, checked[-1].get("content"))
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def _write(self, messages: list[dict[str, Any]], given: dict[str, Any]) -> str:
        parts = [index for index, each in enumerate(messages) if has_parts(each)]
        where, found = self._folder, "a chat template that cannot write these messages"
        expected = "messages and a template that fit"
        if parts:
            where, found = f"messages[{parts[0]}].content", "a list of parts that fails"  # type: ignore[assignment]
            expected = "text, where the chat template takes no parts"
        if self._is_code:
            with Refusing(where, found, expected):
                text = str(self.wrapped.apply_chat_template(messages, tokenize=False, **given))
        else:
            self._set_thinking(given)
            with _RefusingButRefusals(where, found, expected):
                source = self.hugging_face.get_chat_template(None, given["tools"])
                named = self.hugging_face.special_tokens_map
                text = render(source, {**named, "documents": None, **given, "messages": messages})
        for index in parts:
            if str(messages[index]["content"]) in text:
                found = "a list of parts"
                raise InputError(f"messages[{index}].content", found, expected)
        return text

    def _set_thinking(self, given: dict[str, Any]) -> None:
        """Give the template's switch of thinking the name that mlx-lm has found it to have."""
        name = getattr(self.wrapped, "_thinking_kwarg", _THINKING)
        if _THINKING in given:
            given[name] = given.pop(_THINKING)
        given.setdefault(name, self.wrapped.has_thinking)

    @property
    def _is_code(self) -> bool:
        """Whether code of mlx-lm or transformers writes the prompt, instead of a template."""
        own = type(self.hugging_face).apply_chat_template
        stock = PreTrainedTokenizerBase.apply_chat_template
        return self.wrapped._chat_template is not None or own is not stock

    def _wanted(self, messages: Sequence[Mapping[str, Any]]) -> str:
        if any(each["role"] == "system" for each in messages):
            return "messages as it takes them; it may take no system message"
        return "messages as it takes them"


def _cut_behind(text: str, answer: Any) -> str:
    """The prompt up to the end of its last message, whose closing marks are cut off.

    White space at the end of the answer stays where the template keeps it.
    """
    if not isinstance(answer, str) or not answer.strip():
        raise InputError("the last message", shown(answer), "text to be continued")
    stripped = answer.strip()
    start = text.rfind(stripped)
    if start < 0:
        found = "a chat template that changes it"
        raise InputError("the last message", found, "one that writes it as it is")
    end = start + len(stripped)
    space = answer[len(answer.rstrip()) :]
    return text[: end + len(space) if text.startswith(space, end) else end]


class _RefusingButRefusals(Refusing):
    """Converts exceptions as `Refusing` does, but lets a template's own `Refusal` pass."""

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if not isinstance(error, Refusal):
            super().__exit__(kind, error, trace)
