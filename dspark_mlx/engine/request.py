"""A request's settings, checked by name before anything is generated."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from ..errors import InputError, did_you_mean
from ..numbers import check_flag, check_whole, plain, shown, token_ids
from ..sampling.setting_table import Flag, Setting, setting, settings_of, with_settings
from ..sampling.settings import LogitsProcessor, ProcessorFactory, Sampling
from ..system.strict_json import check_text
from .template_settings import TEMPLATE_SETTINGS, TemplateKeywords


class Settings(TypedDict, total=False):
    """Keyword arguments of `Decoder.rounds` and `Decoder.stream`, for type checkers.

    `SETTINGS` says what each means.
    """

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    min_tokens_to_keep: int
    xtc_probability: float
    xtc_threshold: float
    xtc_special_tokens: Collection[int]
    repetition_penalty: float
    repetition_context_size: int
    presence_penalty: float
    presence_context_size: int
    frequency_penalty: float
    frequency_context_size: int
    logit_bias: Mapping[int, float]
    banned_tokens: Collection[int]
    logits_processors: Sequence[LogitsProcessor | ProcessorFactory]
    logprobs: int | None
    draft_temperature: float | None
    verification: str
    reproducible: bool
    seed: int | None
    sample: int
    prefill_step_size: int
    copies: bool
    reference: Sequence[str | Sequence[int]]


class TextSettings(Settings, TemplateKeywords, total=False):
    """Keyword arguments of `Decoder.stream` and its like, for type checkers."""

    stop: str | Sequence[str]
    stop_tokens: Collection[int] | None


@dataclass(frozen=True)
class Request:
    """What one request asks for, beside its prompt; `sampling` says how it chooses its tokens."""

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = setting(
        256,
        "number of tokens to generate at most; a text also ends at the last position that the "
        "target was made for",
        flag=Flag("--max-tokens", short="-m"),
        mlx_lm="--max-tokens",
    )
    stop: tuple[str, ...] = setting(
        (),
        "one string or several that end the text, which is cut before the first that appears",
        flag=Flag("--stop", metavar="TEXT", form="one string, repeatable"),
    )
    stop_tokens: Collection[int] | None = setting(
        None,
        "token ids that end the text, of which the one that did is the last token; by default all "
        "that the target's configs and tokenizer name",
    )
    sample: int = setting(0, "which of several independent texts of the same seed is generated")
    prefill_step_size: int = setting(
        2048,
        "number of prompt tokens that one prefill forward reads; fewer need less memory",
        flag="--prefill-step-size",
        mlx_lm="--prefill-step-size",
    )
    copies: bool = setting(
        True,
        "whether the schedulers auto and lagged may copy drafts from the prompt, the references "
        "and the text so far; the output is the same",
        flag=Flag("--copies"),
    )
    reference: Sequence[str | Sequence[int]] = setting(
        (),
        "texts that the answer may quote, each a string or a list of token ids, from which drafts "
        "are copied; the target does not read them",
        flag=Flag("--reference", metavar="FILE", form="a text file, repeatable"),
    )

    @classmethod
    def make(
        cls,
        max_tokens: int,
        stop: tuple[str, ...],
        settings: Mapping[str, Any],
        stop_tokens: Collection[int] | None = None,
    ) -> Request:
        """A request whose names and values were checked.

        Args:
            max_tokens, stop, stop_tokens: see `Request`.
            settings: see `Settings`.

        Raises:
            InputError: an unknown name, or a value that means nothing; it names the setting, what
                was found and what was expected.
        """
        for name in settings:
            if name not in _KEYWORDS:
                raise InputError(
                    name, "no such setting", f"one of {', '.join(_KEYWORDS)}", _hint(name)
                )
        names = settings_of(Sampling)
        sampling = Sampling(**{name: value for name, value in settings.items() if name in names})
        others = {name: value for name, value in settings.items() if name not in names}
        others = {name: plain(value) for name, value in others.items()}
        if stop_tokens is not None:
            stop_tokens = frozenset(token_ids("stop_tokens", stop_tokens))
        request = cls(sampling, plain(max_tokens), stop, stop_tokens, **others)
        request.check()
        return request

    def check(self) -> None:
        """Refuse settings that mean nothing or cannot be met.

        Raises:
            InputError: it names the setting, its value and the range.
        """
        check_whole("max_tokens", self.max_tokens, 1)
        check_whole("sample", self.sample, 0)
        check_whole("prefill_step_size", self.prefill_step_size, 1)
        self.sampling.check()
        check_flag("copies", self.copies)
        if isinstance(self.reference, str) or not isinstance(self.reference, Sequence):
            raise InputError("reference", shown(self.reference), "a list of texts")
        for text in self.reference:
            if isinstance(text, str):
                check_text("reference", text)
            else:
                token_ids("reference", text)
        for string in self.stop:
            if not isinstance(string, str) or not string:
                raise InputError("stop", shown(string), "non-empty strings")
            check_text("stop", string)
        if self.sample and self.sampling.temperature == 0:
            raise InputError("sample", self.sample, "0 where temperature is 0: all are the same")


def _hint(name: str) -> str:
    """The setting that was meant by an unknown name, if it can be told: mlx-lm's `temp`, a slip."""
    if name == "stop":  # a parameter of `Decoder.stream` alone
        return "Rounds know no text: use stop_tokens, or Decoder.stream."
    for row in SETTINGS.values():
        if row.flag is not None and row.flag.argument == name:
            return f"Did you mean {row.name}?"
    return did_you_mean(name, _KEYWORDS)


def check_prompt(prompt: Sequence[int], vocab_size: int, max_length: int | None) -> None:
    """Refuse a prompt that the target cannot take.

    Args:
        prompt: token ids.
        vocab_size: size of the target's vocabulary.
        max_length: positions that the target was made for; None where its config does not say.

    Raises:
        InputError: the prompt is empty, has an id outside the vocabulary, or leaves no position for
            a token to be generated.
    """
    if not prompt:
        raise InputError("prompt", "no tokens", "at least one token")
    token_ids("prompt", prompt, vocab_size)
    if max_length is not None and len(prompt) >= max_length:
        found = f"{len(prompt)} tokens"
        raise InputError("prompt", found, f"fewer than the target's {max_length} positions")


def _table() -> dict[str, Setting]:
    own = settings_of(Request)
    first = {name: own.pop(name) for name in ("max_tokens", "stop", "stop_tokens")}
    return {**first, **TEMPLATE_SETTINGS, **settings_of(Sampling), **own}


SETTINGS = _table()
"""Every setting of a request by name: flags, docstrings and docs/settings.md are made of it."""

TEXT_SETTINGS = ("stop", *TEMPLATE_SETTINGS)
"""Settings of text, which `Decoder.rounds` does not know."""

_KEYWORDS = tuple(Settings.__annotations__)
with_settings("Attributes", settings_of(Request).values())(Request)
