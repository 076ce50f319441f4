"""How a request samples, checked by name before anything is generated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import mlx.core as mx

from ..errors import InputError
from ..numbers import check_number, check_whole, plain, shown, token_ids

LogitsProcessor: TypeAlias = Callable[[mx.array, mx.array], mx.array]
"""mlx-lm's: all tokens so far, int32 `[n]`, and logits `[1, vocabulary]` to new logits.

It is called for drafted positions too, behind tokens that it would not allow or that end the text,
and again for positions whose draft was rejected: its result may depend on nothing but its
arguments. An object with a method `start(prompt_tokens: int)` is asked for the processor of each
request.
"""

VERIFICATIONS = ("block", "token")


@dataclass(frozen=True)
class Sampling:
    """What can be asked of the choice of tokens; what mlx-lm has too means the same, in its order.

    Logits processors come first (bias, penalties, one's own), then top-p, min-p, XTC and top-k on
    the distribution at temperature 1, then the temperature.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: keep the likeliest tokens that hold this share of the probability; 0 and 1 are off.
        top_k: keep the likeliest k; 0 is off.
        min_p: keep tokens at least this share as likely as the likeliest; 0 is off.
        min_tokens_to_keep: tokens that min-p keeps at least.
        xtc_probability: how often XTC drops all tokens above its threshold but the last.
        xtc_threshold: see there.
        xtc_special_tokens: ids that XTC never drops.
        repetition_penalty: divides positive logits of recent tokens, multiplies negative ones; 0
            and 1 are off.
        presence_penalty: subtracted from the logits of recent tokens.
        frequency_penalty: likewise, as often as each occurred.
        repetition_context_size, presence_context_size, frequency_context_size: tokens, the
            prompt's included, that count as recent.
        logit_bias: added to the logits, by token id.
        banned_tokens: ids that are never chosen.
        logits_processors: further ones, after all these.
        logprobs: report the target's log-probabilities, with so many of the likeliest tokens; None
            is off.
        draft_temperature: of the drafter; 0 drafts its likeliest tokens; None is `temperature`, the
            one that it was trained to match: of 0.6 to 1.2 times it, measured at 0.7 and 1, none
            accepted more on all tasks. It changes the accepted length alone.
        verification: "block" accepts more than "token", the paper's rule, and is as exact; see
            `rejection`.
        reproducible: the same seed gives the same text with and without a drafter, in float32;
            accepts somewhat less.
        seed: None draws one.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    min_tokens_to_keep: int = 1
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    xtc_special_tokens: Collection[int] = ()
    repetition_penalty: float = 1.0
    repetition_context_size: int = 20
    presence_penalty: float = 0.0
    presence_context_size: int = 20
    frequency_penalty: float = 0.0
    frequency_context_size: int = 20
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    banned_tokens: Collection[int] = ()
    logits_processors: Sequence[LogitsProcessor] = ()
    logprobs: int | None = None
    draft_temperature: float | None = None
    verification: str = "block"
    reproducible: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        # NumPy's and MLX's numbers are taken for Python's, and mlx-lm's ways of switching off.
        for field_ in dataclasses.fields(self):
            value = plain(getattr(self, field_.name))
            off = _OFF.get(field_.name)
            if off is not None and (value is None or value == 0) and not isinstance(value, bool):
                value = off
            object.__setattr__(self, field_.name, value)
        if self.logit_bias is None:
            object.__setattr__(self, "logit_bias", {})
        if isinstance(self.logit_bias, Mapping):
            bias = {plain(token): plain(value) for token, value in self.logit_bias.items()}
            object.__setattr__(self, "logit_bias", bias)
        for name in ("banned_tokens", "xtc_special_tokens"):
            tokens = () if getattr(self, name) is None else getattr(self, name)
            object.__setattr__(self, name, tuple(token_ids(name, tokens)))

    def check(self) -> None:
        """Refuse settings that mean nothing or contradict each other.

        Raises:
            InputError: it names the setting, its value and the range.
        """
        check_whole("top_k", self.top_k, 0)
        for name in ("min_tokens_to_keep", *_CONTEXT_SIZES):
            check_whole(name, getattr(self, name), 1)
        for name in ("seed", "logprobs"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 0)
        for name, (inside, expected) in _RANGES.items():
            check_number(name, getattr(self, name), inside, expected)
        if self.draft_temperature is not None:
            check_number("draft_temperature", self.draft_temperature, *_RANGES["temperature"])
        if self.verification not in VERIFICATIONS:
            raise InputError("verification", shown(self.verification), " or ".join(VERIFICATIONS))
        if not isinstance(self.reproducible, bool):
            raise InputError("reproducible", shown(self.reproducible), "True or False")
        if not isinstance(self.logits_processors, Sequence):
            found = shown(self.logits_processors)
            raise InputError("logits_processors", found, "a list of functions")
        for processor in self.logits_processors:
            if not callable(processor) and not hasattr(processor, "start"):
                raise InputError("logits_processors", shown(processor), "functions")
        self._check_bias()
        self._check_contradictions()

    def check_tokens(self, vocab_size: int) -> None:
        """Refuse token ids that the target does not have.

        Raises:
            InputError: it names the setting and the id; or every token is banned.
        """
        for name in ("logit_bias", "banned_tokens", "xtc_special_tokens"):
            for token in getattr(self, name):
                if token >= vocab_size:
                    raise InputError(name, f"token {token}", f"ids from 0 to {vocab_size - 1}")
        if len(set(self.banned_tokens)) == vocab_size:
            raise InputError("banned_tokens", "every token", "at least one that is not banned")
        if self.logprobs is not None and self.logprobs > vocab_size:
            raise InputError("logprobs", self.logprobs, f"at most the vocabulary, {vocab_size}")

    def _check_bias(self) -> None:
        if not isinstance(self.logit_bias, Mapping):
            raise InputError("logit_bias", shown(self.logit_bias), "token ids with numbers")
        for token, bias in self.logit_bias.items():
            check_whole("logit_bias", token, 0)
            check_number(f"logit_bias of token {token}", bias, *_FLOAT32)

    def _check_contradictions(self) -> None:
        both = set(self.logit_bias) & set(self.banned_tokens)
        if both:
            found = f"token {min(both)}, which banned_tokens has too"
            raise InputError("logit_bias", found, "tokens that may be chosen")
        for name in ("presence_penalty", "frequency_penalty"):
            value, repetition = getattr(self, name), self.repetition_penalty
            if (value > 0 and repetition < 1) or (value < 0 and repetition > 1):
                found = f"{value}, with repetition_penalty {repetition}"
                raise InputError(name, found, "both to discourage repeats, or both to reward them")
        if self.temperature == 0 and self.draft_temperature:
            found = f"{self.draft_temperature}, with temperature 0"
            raise InputError("draft_temperature", found, "0 or none where nothing is sampled")
        if self.reproducible and self.verification == "token":
            raise InputError("verification", "token, with reproducible", "one of the two")


_CONTEXT_SIZES = ("repetition_context_size", "presence_context_size", "frequency_context_size")
# Far from where sums of float32 overflow.
_FLOAT32 = (lambda x: abs(x) <= 1e30, "finite, from -1e30 to 1e30")
# What switches a setting off here, where mlx-lm also takes 0 or None.
_OFF = {"top_p": 1.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    # Beyond these, float32 cannot hold what a temperature makes of a logit.
    "temperature": (lambda t: t == 0 or 1e-4 <= t <= 1e4, "0 or more, and 1e-4 to 1e4 if not 0"),
    "top_p": (lambda p: 0 < p <= 1, "from 0 to 1"),
    "min_p": (lambda p: 0 <= p <= 1, "from 0 to 1"),
    "xtc_probability": (lambda p: 0 <= p <= 1, "from 0 to 1"),
    "xtc_threshold": (lambda t: 0 <= t <= 0.5, "from 0 to 0.5"),
    "repetition_penalty": (lambda r: 1e-6 <= r <= 1e6, "0, or from 1e-6 to 1e6"),
    "presence_penalty": _FLOAT32,
    "frequency_penalty": _FLOAT32,
}
