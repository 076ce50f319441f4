"""A request's settings, checked by name before anything is generated."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from ..errors import InputError
from ..numbers import check_whole, plain, shown, token_ids
from ..sampling.settings import LogitsProcessor, Sampling
from ..text.messages import check_text


class Settings(TypedDict, total=False):
    """Keyword arguments of `Decoder.rounds` and `Decoder.stream`.

    `prefill_step_size` is prompt tokens per prefill forward (default 2048), less needs less memory;
    `sample` is which of several samples of one seed (default 0). For the others see
    `sampling.settings.Sampling`.
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
    logits_processors: Sequence[LogitsProcessor]
    logprobs: int | None
    draft_temperature: float | None
    verification: str
    reproducible: bool
    seed: int | None
    sample: int
    prefill_step_size: int


@dataclass(frozen=True)
class Request:
    """What one request asks for, beside its prompt.

    Attributes:
        sampling: how tokens are chosen.
        max_tokens: tokens to generate at most.
        stop: strings that end the text, and are cut from it.
        sample: which of several samples of one seed.
        prefill_step_size: prompt tokens per prefill forward.
    """

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    sample: int = 0
    prefill_step_size: int = 2048

    @classmethod
    def make(cls, max_tokens: int, stop: tuple[str, ...], settings: Mapping[str, Any]) -> Request:
        """A checked request.

        Args:
            max_tokens, stop: see `Request`.
            settings: see `Settings`.

        Raises:
            InputError: an unknown name, or a value that means nothing; it names the setting, what
                was found and what was expected.
        """
        known = Settings.__annotations__
        for name in settings:
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f"Did you mean {close[0]}?" if close else ""
                raise InputError(name, "no such setting", f"one of {', '.join(known)}", hint)
        names = {f.name for f in dataclasses.fields(Sampling)}
        sampling = Sampling(**{name: value for name, value in settings.items() if name in names})
        others = {name: value for name, value in settings.items() if name not in names}
        others = {name: plain(value) for name, value in others.items()}
        request = cls(sampling, plain(max_tokens), stop, **others)
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
        for string in self.stop:
            if not isinstance(string, str) or not string:
                raise InputError("stop", shown(string), "non-empty strings")
            check_text("stop", string)
        if self.sample and self.sampling.temperature == 0:
            raise InputError("sample", self.sample, "0 where temperature is 0: all are the same")


def check_prompt(prompt: Sequence[int], vocab_size: int, max_length: int | None) -> None:
    """Refuse a prompt that the target cannot take.

    Args:
        prompt: token ids.
        vocab_size: ids are below it.
        max_length: positions the target was made for; None when its config does not say.

    Raises:
        InputError: empty, an id outside the vocabulary, or no position left to generate at.
    """
    if not prompt:
        raise InputError("prompt", "no tokens", "at least one token")
    token_ids("prompt", prompt, vocab_size)
    if max_length is not None and len(prompt) >= max_length:
        found = f"{len(prompt)} tokens"
        raise InputError("prompt", found, f"fewer than the target's {max_length} positions")
