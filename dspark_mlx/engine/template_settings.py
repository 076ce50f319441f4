"""What a chat template is given beside the messages: thinking, tools, variables, a beginning."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from ..errors import InputError
from ..numbers import shown
from ..sampling.setting_table import Flag, setting, settings_of, with_settings
from ..system.strict_json import check_text
from ..text.messages import plain_data

_THINKING = "enable_thinking"
# Variables that the messages and the other settings give.
_TAKEN = ("messages", "tools", "add_generation_prompt", "tokenize", "continue_final_message")


class TemplateKeywords(TypedDict, total=False):
    """Keyword arguments of `Decoder.encode`, for type checkers; `TemplateSettings` explains."""

    thinking: bool | None
    tools: Sequence[Mapping[str, Any]] | None
    chat_template_kwargs: Mapping[str, Any]
    prefill_response: str | None


@dataclass(frozen=True)
class TemplateSettings:
    """What a chat template is given beside the messages."""

    thinking: bool | None = setting(
        None,
        "whether the target thinks before it answers, where its chat template has that choice; by "
        "default mlx-lm makes it",
        flag=Flag("--thinking", form="or --no-thinking"),
    )
    tools: Sequence[Mapping[str, Any]] | None = setting(
        None,
        "functions that the answer may call, as JSON schemas for the chat template; with token ids "
        "they only say how calls in the answer are read",
    )
    chat_template_kwargs: Mapping[str, Any] = setting(
        {},
        "further variables of the chat template, by name",
        flag=Flag(
            "--chat-template-config", metavar="JSON", form="an object of JSON, or a file of it"
        ),
        mlx_lm="--chat-template-config",
    )
    prefill_response: str | None = setting(
        None,
        "beginning of the answer, which the target continues and the text does not repeat",
        flag=Flag("--prefill-response", metavar="TEXT", command="generate"),
        mlx_lm="--prefill-response",
    )

    @classmethod
    def make(cls, settings: Mapping[str, Any]) -> TemplateSettings:
        """The settings of `Decoder.encode`.

        Raises:
            InputError: an unknown name.
        """
        for name in settings:
            if name not in TEMPLATE_SETTINGS:
                expected = f"one of {', '.join(TEMPLATE_SETTINGS)}"
                raise InputError(name, "no such setting", expected)
        return cls(**settings)

    def check_unused(self, used: Collection[str] = ()) -> None:
        """Refuse settings of a chat template for a prompt that goes through none.

        Args:
            used: names of those that have a meaning all the same.

        Raises:
            InputError: it names the first that was given.
        """
        for name, row in settings_of(TemplateSettings).items():
            if name not in used and (value := getattr(self, name)) != row.default:
                expected = "none: text and token ids go through no chat template"
                raise InputError(name, shown(value), expected)

    def variables(self) -> dict[str, Any]:
        """The template's variables, as plain data.

        Raises:
            InputError: a value has another type, or a variable is given twice.
        """
        if self.thinking not in (None, True, False):
            raise InputError("thinking", shown(self.thinking), "True, False or None")
        given = self._data("chat_template_kwargs", self.chat_template_kwargs, Mapping)
        for name in given:
            if name in _TAKEN:
                expected = f"other variables than {', '.join(_TAKEN)}"
                raise InputError("chat_template_kwargs", name, expected)
        if self.thinking is not None:
            if _THINKING in given:
                found = f"{self.thinking}, and {_THINKING} in chat_template_kwargs"
                raise InputError("thinking", found, "only one of the two")
            given[_THINKING] = bool(self.thinking)
        if self.tools is not None:
            given["tools"] = self._data("tools", self.tools, Sequence)
            for i, tool in enumerate(given["tools"]):
                if not isinstance(tool, dict):
                    raise InputError(f"tools[{i}]", shown(tool), "a JSON schema, a mapping")
        return given

    def answer(self) -> str | None:
        """The checked beginning of the answer; None without one.

        Raises:
            InputError: it is not text, or has none.
        """
        if self.prefill_response is None:
            return None
        if not isinstance(self.prefill_response, str) or not self.prefill_response.strip():
            raise InputError("prefill_response", shown(self.prefill_response), "text")
        return check_text("prefill_response", self.prefill_response)

    def _data(self, name: str, value: Any, kind: type) -> Any:
        if not isinstance(value, kind) or isinstance(value, str):
            raise InputError(name, shown(value), f"a {kind.__name__.lower()}")
        return plain_data(name, value)


TEMPLATE_SETTINGS = settings_of(TemplateSettings)
"""The settings of chat templates by name; `Decoder.encode` and `Decoder.stream` take them."""

with_settings("Attributes", TEMPLATE_SETTINGS.values())(TemplateSettings)
