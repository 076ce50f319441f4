"""What each sampling setting means, in NumPy and float64, independent of the package."""

from __future__ import annotations

from collections import Counter

import mlx.core as mx
import numpy as np

from helpers.toys import Distribution


def no_repeats(tokens: mx.array, logits: mx.array) -> mx.array:
    """A logits processor of a user's own: never the same token twice in a row."""
    columns = mx.arange(logits.shape[-1])
    return mx.where(columns == tokens[-1], -mx.inf, logits)


def reference(
    temperature=1.0,
    top_p=1.0,
    top_k=0,
    min_p=0.0,
    xtc_probability=0.0,
    xtc_threshold=0.1,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    logit_bias=None,
    banned_tokens=(),
    logits_processors=(),
    min_tokens_to_keep=1,
    xtc_special_tokens=(),
    repetition_context_size=20,
    presence_context_size=20,
    frequency_context_size=20,
    draft_temperature=None,
    verification="block",
    reproducible=False,
) -> Distribution:
    """The distribution of the next token; the last three settings change none."""

    def distribution(logits: np.ndarray, prefix: tuple[int, ...]) -> np.ndarray:
        z = logits.copy()
        for token, bias in (logit_bias or {}).items():
            z[token] += bias
        for token in set(prefix[-repetition_context_size:]):
            z[token] *= repetition_penalty if z[token] < 0 else 1 / repetition_penalty
        for token in set(prefix[-presence_context_size:]):
            z[token] -= presence_penalty
        for token, count in Counter(prefix[-frequency_context_size:]).items():
            z[token] -= count * frequency_penalty
        z[list(banned_tokens)] = -np.inf
        if logits_processors:
            z[prefix[-1]] = -np.inf
        p = softmax(z)
        if top_p < 1:
            above = np.array([p[p > x].sum() for x in p])
            z[above >= top_p] = -np.inf
        low = p < min_p * p.max()
        low[np.argsort(-z)[:min_tokens_to_keep]] = False
        z[low] = -np.inf
        kept = cut_to(z, top_k)
        dropped = z.copy()
        p = softmax(z)
        if (p > xtc_threshold).any():
            above = p > p[p > xtc_threshold].min()
            above[list(xtc_special_tokens)] = False
            dropped[above] = -np.inf
        dropped = cut_to(dropped, top_k)
        share = xtc_probability
        return (1 - share) * softmax(kept / temperature) + share * softmax(dropped / temperature)

    return distribution


def cut_to(z: np.ndarray, top_k: int) -> np.ndarray:
    """The k largest; the toys have no ties."""
    return np.where(z >= np.sort(z)[-top_k], z, -np.inf) if top_k else z


def softmax(z: np.ndarray) -> np.ndarray:
    """Float64."""
    weights = np.exp(z - z.max())
    return weights / weights.sum()
