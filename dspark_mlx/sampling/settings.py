"""How a request samples, checked by name before anything is generated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import mlx.core as mx

from ..errors import InputError
from ..numbers import check_flag, check_number, check_whole, plain, shown, token_ids
from .setting_table import Flag, setting, settings_of, with_settings

LogitsProcessor: TypeAlias = Callable[[mx.array, mx.array], mx.array]
"""A function of mlx-lm's kind: all tokens so far, int32 `[n]`, and logits `[1, vocabulary]` are its
arguments, new logits its result.

It is called for drafted positions too, after tokens that it would not allow or that end the text,
and again where a draft was rejected. So the result may depend on the arguments alone.
"""


class ProcessorFactory(Protocol):
    """An object that makes a logits processor for each request, as `JsonSchema` does."""

    def start(self, prompt_tokens: int) -> LogitsProcessor:
        """The processor of one request, whose prompt has so many tokens."""
        ...


VERIFICATIONS = ("block", "token")


@dataclass(frozen=True)
class Sampling:
    """How a request chooses its tokens; what mlx-lm has too means the same, in the same order.

    Logits processors come first (bias and bans, penalties, the request's own), then top-p, min-p,
    XTC and top-k on the distribution at temperature 1, then the temperature.
    """

    temperature: float = setting(
        0.0,
        "divides the logits before a token is drawn, from 0.0001 to 10000; 0 takes the likeliest "
        "token",
        flag="--temp",
        mlx_lm="--temp",
    )
    top_p: float = setting(
        1.0,
        "keeps the likeliest tokens that hold this share of the probability; 0 and 1 are off",
        flag="--top-p",
        mlx_lm="--top-p",
    )
    top_k: int = setting(
        0,
        "keeps this many of the likeliest tokens; 0 is off",
        flag="--top-k",
        mlx_lm="--top-k",
    )
    min_p: float = setting(
        0.0,
        "keeps the tokens whose probability is at least this share of the likeliest token's; "
        "0 is off",
        flag="--min-p",
        mlx_lm="--min-p",
    )
    min_tokens_to_keep: int = setting(
        1,
        "number of tokens that min-p keeps at least",
        flag="--min-tokens-to-keep",
        mlx_lm="--min-tokens-to-keep",
    )
    xtc_probability: float = setting(
        0.0,
        "probability that XTC applies to a token: of all tokens above the XTC threshold it then "
        "keeps the least likely alone",
        flag="--xtc-probability",
        mlx_lm="--xtc-probability",
    )
    xtc_threshold: float = setting(
        0.1,
        "probability above which XTC drops tokens, at most 0.5",
        flag="--xtc-threshold",
        mlx_lm="--xtc-threshold",
    )
    xtc_special_tokens: Collection[int] = setting(
        (),
        "token ids that XTC never drops; the commands name the line break and the stop tokens",
        mlx_lm="xtc_special_tokens",
    )
    repetition_penalty: float = setting(
        1.0,
        "divides the positive logits of recent tokens and multiplies the negative ones, so that "
        "more than 1 discourages repeats; 0 and 1 are off",
        flag="--repetition-penalty",
        mlx_lm="repetition_penalty",
    )
    repetition_context_size: int = setting(
        20,
        "number of tokens, the prompt's included, that the repetition penalty takes for recent",
        flag="--repetition-context-size",
        mlx_lm="repetition_context_size",
    )
    presence_penalty: float = setting(
        0.0,
        "subtracted once from the logit of every recent token; 0 is off",
        flag="--presence-penalty",
        mlx_lm="presence_penalty",
    )
    presence_context_size: int = setting(
        20,
        "number of tokens, the prompt's included, that the presence penalty takes for recent",
        flag="--presence-context-size",
        mlx_lm="presence_context_size",
    )
    frequency_penalty: float = setting(
        0.0,
        "subtracted from the logit of a recent token for every time that it occurs; 0 is off",
        flag="--frequency-penalty",
        mlx_lm="frequency_penalty",
    )
    frequency_context_size: int = setting(
        20,
        "number of tokens, the prompt's included, that the frequency penalty takes for recent",
        flag="--frequency-context-size",
        mlx_lm="frequency_context_size",
    )
    logit_bias: Mapping[int, float] = setting(
        {},
        "numbers that are added to the logits, by token id",
        flag=Flag("--logit-bias", metavar="JSON", form="JSON or a file of it: '{\"42\": -3.5}'"),
        mlx_lm="logit_bias",
    )
    banned_tokens: Collection[int] = setting(
        (),
        "token ids that are never chosen",
        flag=Flag("--ban", metavar="TOKEN", form="one id, repeatable"),
    )
    logits_processors: Sequence[LogitsProcessor | ProcessorFactory] = setting(
        (),
        "functions of mlx-lm's kind that change the logits, called after bias, bans and penalties",
        mlx_lm="logits_processors",
    )
    logprobs: int | None = setting(
        None,
        "number of likeliest tokens whose log-probabilities are reported beside each token's own; "
        "by default none are reported",
        flag=Flag("--logprobs", metavar="N", form="needs --json", command="generate"),
    )
    # The drafter was trained to match the request's temperature: of 0.6 to 1.2 times it, measured
    # at 0.7 and 1, none accepted more on all tasks.
    draft_temperature: float | None = setting(
        None,
        "temperature of the drafter, which changes the accepted length alone; 0 drafts its "
        "likeliest tokens, and by default it is the request's temperature",
        flag="--draft-temp",
    )
    verification: str = setting(
        "block",
        "rule that accepts drafts: block accepts more than token, which is the paper's rule, and "
        "both are exact",
        flag="--verification",
        choices=VERIFICATIONS,
    )
    reproducible: bool = setting(
        False,
        "gives the same text for the same seed with and without a drafter, in float32; accepts "
        "somewhat less",
        flag="--reproducible",
    )
    seed: int | None = setting(
        None,
        "seed of the request's random numbers; by default one is drawn",
        flag="--seed",
        mlx_lm="--seed",
    )

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
        check_whole("min_tokens_to_keep", self.min_tokens_to_keep, 1)
        for name in _CONTEXT_SIZES:
            check_whole(name, getattr(self, name), 1, _LONGEST)
        for name in ("seed", "logprobs"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 0)
        for name, (inside, expected) in _RANGES.items():
            check_number(name, getattr(self, name), inside, expected)
        if self.draft_temperature is not None:
            check_number("draft_temperature", self.draft_temperature, *_RANGES["temperature"])
        if self.verification not in VERIFICATIONS:
            raise InputError("verification", shown(self.verification), " or ".join(VERIFICATIONS))
        check_flag("reproducible", self.reproducible)
        if not isinstance(self.logits_processors, Sequence):
            found = shown(self.logits_processors)
            raise InputError("logits_processors", found, "a list of functions")
        for processor in self.logits_processors:
            if not callable(processor) and not callable(getattr(processor, "start", None)):
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


with_settings("Attributes", settings_of(Sampling).values())(Sampling)

_LONGEST = (1 << 31) - 1  # of a slice in MLX
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
