"""What a target's files say of its text: tokenizer, end tokens, positions, prompts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from ..engine.template_settings import TemplateSettings
from ..errors import InputError
from ..numbers import listed, plain, token_ids
from ..targets.positions import max_length
from ..text.end_tokens import end_tokens
from ..text.generation_config import generation_defaults
from ..text.tokenizer import Tokenizer
from ..text.tokenizer_files import has_tokenizer
from ..vision.encoder import ImageEncoder, ImagePrompt
from ..vision.images import take_images

Messages: TypeAlias = Sequence[dict[str, Any]]
Prompt: TypeAlias = str | Messages | Sequence[int]


@dataclass
class TargetText:
    """Text of one target; decoders of the same target share it.

    Attributes:
        folder: the target's folder; of a network that was given, the name in errors.
        config: the target's config.json.
        vocab_size: the target's number of token ids.
        encoder: reads images for the target.
        given: the tokenizer that was given with a network; None where the folder has one.
    """

    folder: Path
    config: dict[str, Any]
    vocab_size: int
    encoder: ImageEncoder
    given: Tokenizer | None = None
    _tokenizer: Tokenizer | None = field(default=None, init=False)

    @property
    def tokenizer(self) -> Tokenizer:
        """The target's tokenizer, loaded when first needed.

        Raises:
            InputError: see `Tokenizer.load`.
        """
        if self.given is not None:
            return self.given
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.load(self.folder, self._configured_ends)
        return self._tokenizer

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Token ids that end a text, see `Decoder.stop_tokens`.

        Raises:
            InputError: see `end_tokens.end_tokens` and `Tokenizer.load`.
        """
        known = self.given or self._tokenizer
        if known is None and not has_tokenizer(self.folder):
            return self._configured_ends
        return self._configured_ends | self.tokenizer.end_tokens

    @property
    def _configured_ends(self) -> frozenset[int]:
        return end_tokens(self.folder, self.config, self.vocab_size)

    @property
    def max_length(self) -> int | None:
        """Number of positions that the target was made for; None where its config does not say.

        Raises:
            InputError: see `positions.max_length`.
        """
        return max_length(self.folder, self.config)

    @property
    def generation_defaults(self) -> dict[str, Any]:
        """Settings that the target's makers recommend, see `Decoder.generation_defaults`.

        Raises:
            InputError: see `generation_config.generation_defaults`.
        """
        return generation_defaults(self.folder)

    def encode(self, prompt: Prompt, settings: TemplateSettings) -> list[int]:
        """Token ids of a prompt without images, see `Decoder.encode`.

        Raises:
            InputError: the prompt or a setting cannot be used.
        """
        settings.variables()
        settings.answer()
        if isinstance(prompt, str):
            settings.check_unused()
            return self.tokenizer.encode_prompt(prompt)
        taken = listed(prompt)
        if not isinstance(taken, Sequence) or isinstance(taken, bytes | bytearray | memoryview):
            found = type(prompt).__name__
            raise InputError("prompt", found, "a string, a list of messages or of token ids")
        if taken and not _is_number(taken[0]):
            return list(self._write(taken, settings))
        settings.check_unused(("tools",))
        return token_ids("prompt", taken, self.vocab_size)

    def read(
        self, prompt: Prompt, settings: TemplateSettings
    ) -> tuple[list[int], ImagePrompt | None]:
        """Token ids of a prompt, and the prompt with its images where it has some.

        Raises:
            InputError: the prompt or a setting cannot be used.
        """
        messages, images = take_images(prompt)
        if not images:
            return self.encode(prompt, settings), None
        if self.given is not None:
            hint = "Load the target from its folder."
            raise InputError("messages", "images", "text, for a network that was given", hint)
        text = self._write(messages, settings, tokenize=False, images=True)
        read = self.encoder.read(text, images)
        return read.ids, read

    def references(self, texts: Collection[str | Sequence[int]]) -> list[list[int]]:
        """Token ids of texts that an answer may quote.

        Raises:
            InputError: an id that the target does not have, or a text without a tokenizer.
        """
        return [
            self.tokenizer.encode(each, add_special_tokens=False)
            if isinstance(each, str)
            else token_ids("reference", each, self.vocab_size)
            for each in texts
        ]

    def _write(self, messages: Messages, settings: TemplateSettings, **options: Any) -> Any:
        """What the chat template makes of messages; `options` are of `apply_chat_template`."""
        answer = settings.answer()
        continues = answer is not None
        if continues:
            messages = [*messages, {"role": "assistant", "content": answer}]
        variables: Mapping[str, Any] = settings.variables()
        return self.tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=not continues,
            continue_final_message=continues,
            **options,
            **variables,
        )


def _is_number(value: object) -> bool:
    return isinstance(plain(value), int | float)
