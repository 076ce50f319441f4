"""Turns logits into log-weights: logits processors, then filters, then temperature, as in mlx-lm.

Filters and penalties are mlx-lm's own functions, so that every setting has mlx-lm's meaning. Only
XTC is implemented here: mlx-lm's XTC uses the process-wide random generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx_lm.sample_utils import (
    apply_min_p,
    apply_top_k,
    apply_top_p,
    make_logits_processors,
)
from mlx_lm.sample_utils import (
    make_sampler as mlx_lm_sampler,
)

from ..errors import InputError
from ..numbers import shown
from .settings import LogitsProcessor, Sampling


def make_processors(sampling: Sampling, prompt_tokens: int) -> list[LogitsProcessor]:
    """A request's logits processors: bias and penalties in mlx-lm's order, then the user's own."""
    bias = {int(t): float(b) for t, b in sampling.logit_bias.items()}
    bias |= dict.fromkeys(sampling.banned_tokens, -math.inf)
    # Python's integers may be larger than those that MLX takes.
    repetition = float(sampling.repetition_penalty)
    presence, frequency = float(sampling.presence_penalty), float(sampling.frequency_penalty)
    processors = make_logits_processors(
        bias or None,
        repetition if repetition != 1 else None,
        sampling.repetition_context_size,
        presence or None,
        sampling.presence_context_size,
        frequency or None,
        sampling.frequency_context_size,
    )
    for processor in sampling.logits_processors:
        start = getattr(processor, "start", None)
        made = start(prompt_tokens) if callable(start) else processor
        if not callable(made):
            where = f"logits_processors: start of {_name(processor)}"
            raise InputError(where, shown(made), "a function")
        processors.append(made)
    return processors


def process(
    processors: list[LogitsProcessor],
    logits: mx.array,
    prefix: mx.array | None,
    block: mx.array | None,
) -> mx.array:
    """Logits after the processors, float32 `[rows, vocabulary]`.

    Args:
        processors: applied in order, to each row with the tokens before it.
        logits: `[rows, vocabulary]`.
        prefix: the tokens before row 0's choice, int32 `[n]`; None only without processors.
        block: the tokens that rows 1 and on follow, int32 `[rows - 1 or more]`; None for one row.

    Raises:
        InputError: a processor returned something else than one row of logits.
    """
    logits = logits.astype(mx.float32)
    if not processors:
        return logits
    assert prefix is not None
    rows = []
    for i in range(logits.shape[0]):
        tokens = mx.concatenate([prefix, block[:i]]) if i and block is not None else prefix
        row = logits[i : i + 1]
        for processor in processors:
            row = _checked(processor(tokens, row), processor, row)
        rows.append(row.astype(mx.float32))
    return mx.concatenate(rows)


def _checked(made: Any, processor: LogitsProcessor, row: mx.array) -> mx.array:
    if not isinstance(made, mx.array):
        found = f"{shown(made)} ({type(made).__name__})"
    elif made.shape != row.shape or not mx.issubdtype(made.dtype, mx.floating):
        found = f"an mx.array of {str(made.dtype).rpartition('.')[2]} of the shape {made.shape}"
    else:
        return made
    where = f"logits_processors: {_name(processor)}"
    expected = f"an mx.array of floats of the shape {row.shape}, as it was given"
    raise InputError(where, f"{found} returned", expected)


def _name(processor: object) -> str:
    return getattr(processor, "__qualname__", None) or type(processor).__qualname__


def plain_sampler(sampling: Sampling, vocabulary: int) -> Callable[[mx.array], mx.array]:
    """mlx-lm's own sampler with the same settings, for comparison with mlx-lm's decoding."""
    s = sampling
    # mlx-lm refuses sizes as large as the vocabulary, which would keep every token.
    return mlx_lm_sampler(
        s.temperature,
        s.top_p,
        s.min_p,
        min(s.min_tokens_to_keep, vocabulary),
        s.top_k if s.top_k < vocabulary else 0,
        s.xtc_probability,
        s.xtc_threshold,
        list(s.xtc_special_tokens),
    )


class Filters:
    """Applies top-p, min-p, XTC and top-k, then a temperature.

    Args:
        sampling: the request's settings.
        temperature: above 0.
    """

    def __init__(self, sampling: Sampling, temperature: float) -> None:
        self._sampling = sampling
        self._scale = 1 / temperature
        s = sampling
        self._filters = s.top_p < 1 or s.min_p > 0 or s.xtc_probability > 0

    def __call__(
        self, logits: mx.array, use_xtc: mx.array | None, ids: mx.array | None = None
    ) -> mx.array:
        """Log-weights `[rows, size]`, not normalised; -inf for tokens that are filtered out.

        Args:
            logits: float32 `[rows, size]`.
            use_xtc: whether XTC applies to each row, bool `[rows, 1]`; None without XTC.
            ids: token id of each column, int32 `[size]`; None for the whole vocabulary.
        """
        s = self._sampling
        if self._filters:
            logits = normalize(logits)
        if s.top_p < 1:
            logits = apply_top_p(logits, s.top_p)
        if s.min_p > 0:
            logits = apply_min_p(logits, s.min_p, min(s.min_tokens_to_keep, logits.shape[-1]))
        if use_xtc is not None:
            logits = self._xtc(logits, use_xtc, ids)
        if 0 < s.top_k < logits.shape[-1]:
            logits = apply_top_k(logits, s.top_k)
        return logits * self._scale if self._scale != 1 else logits

    def _xtc(self, logits: mx.array, use_xtc: mx.array, ids: mx.array | None) -> mx.array:
        probabilities = mx.softmax(logits, axis=-1)
        above = probabilities > self._sampling.xtc_threshold
        smallest = mx.where(above, probabilities, mx.inf).min(axis=-1, keepdims=True)
        dropped = (probabilities > smallest) & use_xtc
        columns = mx.arange(logits.shape[-1]) if ids is None else ids
        for token in self._sampling.xtc_special_tokens:
            dropped = dropped & (columns != token)
        return mx.where(dropped, -mx.inf, logits)


def normalize(weights: mx.array) -> mx.array:
    """Log-probabilities of log-weights `[rows, size]`, row by row."""
    return weights - mx.logsumexp(weights, axis=-1, keepdims=True)
