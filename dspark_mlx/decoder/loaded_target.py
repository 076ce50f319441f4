"""A target that was loaded: what it is made of, and its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from ..engine.template_settings import TEMPLATE_SETTINGS, TemplateKeywords, TemplateSettings
from ..sampling.json_schema import JsonSchema
from ..sampling.setting_table import with_settings
from ..sampling.tool_call import ToolCallGrammar
from ..text.tokenizer import Tokenizer
from .target_text import Prompt, TargetText


class LoadedTarget:
    """The part of a decoder that its drafter and scheduler do not change.

    Args:
        text: of the target.
        precision: the type that the weights are held in, one of `precision.NAMES` except "auto".
        adapter: folder of the target's adapter; None without one.
    """

    def __init__(self, text: TargetText, precision: str, adapter: Path | None) -> None:
        self._text = text
        self._precision = precision
        self._adapter = adapter

    @property
    def target_folder(self) -> Path:
        """The folder that the target was loaded from; of a given network a name, no folder."""
        return self._text.folder

    @property
    def is_given(self) -> bool:
        """Whether the target was given as a network and a tokenizer."""
        return self._text.given is not None

    @property
    def adapter_folder(self) -> Path | None:
        """The folder of the target's adapter; None without one."""
        return self._adapter

    @property
    def config(self) -> dict[str, Any]:
        """The target's config.json."""
        return self._text.config

    @property
    def precision(self) -> str:
        """The type that the weights are held in: "stored", "float32", "bfloat16" or "float16"."""
        return self._precision

    @property
    def tokenizer(self) -> Tokenizer:
        """The target's tokenizer, loaded when first needed.

        Raises:
            InputError: see `Tokenizer.load`.
        """
        return self._text.tokenizer

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Token ids that end a text, where a request names no others in its own `stop_tokens`.

        They are the union of what the target's config.json, generation_config.json and tokenizer
        name; a folder without a tokenizer has what its configs name.

        Raises:
            InputError: see `end_tokens.end_tokens` and `Tokenizer.load`.
        """
        return self._text.stop_tokens

    @property
    def max_length(self) -> int | None:
        """Number of positions that the target was made for; None where its config does not say.

        Raises:
            InputError: see `positions.max_length`.
        """
        return self._text.max_length

    @property
    def generation_defaults(self) -> dict[str, Any]:
        """Settings that the target's makers recommend, of its generation_config.json.

        They are keyword arguments of `stream`, `submit` and `rounds`, which do not use them unless
        they are given; empty where the file names none.

        Raises:
            InputError: see `generation_config.generation_defaults`.
        """
        return self._text.generation_defaults

    def json_schema(self, schema: Mapping[str, Any]) -> JsonSchema:
        """A logits processor that keeps a text to a JSON schema; one serves many requests.

        Args:
            schema: the JSON schema. Objects without "additionalProperties": false, and strings and
                arrays without bounds, can go on until `max_tokens` cuts the text off.

        Raises:
            InputError: see `json_schema.JsonSchema`.
        """
        text = self._text
        hugging_face = text.tokenizer.hugging_face
        return JsonSchema(schema, hugging_face, text.vocab_size, text.stop_tokens)

    def tool_grammar(self, tools: Sequence[Mapping[str, Any]]) -> ToolCallGrammar:
        """A logits processor that keeps an answer to one call of one of these tools.

        Give the request the same tools, and `thinking=False` where the template has that choice.

        Args:
            tools: JSON schemas of functions, as `stream` takes them.

        Raises:
            InputError: see `tool_call.ToolCallGrammar`.
        """
        text = self._text
        return ToolCallGrammar(tools, text.tokenizer, text.vocab_size, text.stop_tokens)

    @with_settings("Settings", TEMPLATE_SETTINGS.values())
    def encode(self, prompt: Prompt, **settings: Unpack[TemplateKeywords]) -> list[int]:
        """Token ids of a prompt.

        Args:
            prompt: text, which is encoded as it is; chat messages, which the target's chat template
                turns into text; or token ids, which are returned. Messages with images are for
                `stream` and its like, since token ids do not hold them.
            settings: see Settings below; for chat messages only.

        Raises:
            InputError: the chat template does not take the messages, or the prompt or a setting has
                another type.
        """
        return self._text.encode(prompt, TemplateSettings.make(settings))
