"""A request's settings, checked by name before anything is generated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .errors import InputError


@dataclass(frozen=True)
class Request:
    """What one request asks for, beside its prompt.

    Attributes:
        max_tokens: tokens to generate at most.
        temperature, top_p, top_k, min_p, seed: sampling; only temperature 0 is there yet.
        stop: strings that end the text, and are cut from it.
        prefill_step_size: prompt tokens per prefill forward.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    prefill_step_size: int = 2048

    def check(self) -> None:
        """Refuse settings that mean nothing or cannot be met.

        Raises:
            InputError: it names the setting, its value and the range.
        """
        _whole("max_tokens", self.max_tokens, 1)
        _whole("top_k", self.top_k, 0)
        _whole("prefill_step_size", self.prefill_step_size, 1)
        if self.seed is not None:
            _whole("seed", self.seed, 0)
        _within("temperature", self.temperature, lambda t: t >= 0, "0 or more")
        _within("top_p", self.top_p, lambda p: 0 < p <= 1, "above 0 and at most 1")
        _within("min_p", self.min_p, lambda p: 0 <= p < 1, "from 0 to below 1")
        if self.temperature > 0:
            hint = "Sampling comes in a later version."
            raise InputError("temperature", self.temperature, "0 (greedy decoding)", hint)
        for string in self.stop:
            if not isinstance(string, str) or not string:
                raise InputError("stop", repr(string), "non-empty strings")


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
    for position, token in enumerate(prompt):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            found = f"{token!r} at position {position}"
            raise InputError("prompt", found, f"token ids from 0 to {vocab_size - 1}")
    if max_length is not None and len(prompt) >= max_length:
        found = f"{len(prompt)} tokens"
        raise InputError("prompt", found, f"fewer than the target's {max_length} positions")


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(name, repr(value), f"a whole number, {least} or more")


def _within(name: str, value: object, inside: Callable[[float], bool], expected: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not inside(value):  # type: ignore[arg-type]
        raise InputError(name, repr(value), f"a number, {expected}")
