"""mlx-lm's batch caches, with masks in which padding attends to itself.

In mlx-lm's masks padding attends to nothing. MLX's fused attention on CUDA then divides by zero,
and the NaN in the padding's values reaches every row, even with a weight of zero. Real tokens
attend to themselves anyway, so nothing changes for them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import (
    BatchKVCache,
    BatchRotatingKVCache,
    KVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from ...targets.network import REFUSALS
from ...targets.tap_check import PROBE, probe_logits

_PADDING = 2
# As a part of the largest logit; forwards of other shapes round otherwise in 16 bits.
_EXACT, _ROUNDED = 1e-3, 0.05


class PaddedCache(BatchKVCache):
    """A cache of rows that are padded on the left."""

    def make_mask(self, N: int, return_array: bool = False, **window: Any) -> mx.array:
        """The mask of N new tokens, True where one attends to a key, bool `[rows, 1, N, keys]`."""
        return _with_itself(super().make_mask(N, return_array=return_array, **window))


class PaddedRotatingCache(BatchRotatingKVCache):
    """A rotating cache, which has a window, of rows that are padded on the left."""

    def make_mask(
        self, N: int, window_size: int | None = None, return_array: bool = False
    ) -> mx.array:
        """The mask of N new tokens, True where one attends to a key, bool `[rows, 1, N, keys]`."""
        return _with_itself(super().make_mask(N, window_size, return_array))


def can_be_padded(model: nn.Module) -> bool:
    """Whether rows may be padded on the left: all caches have such a form, and logits stay equal.

    A few families compute positions or scales of their own, which padding upsets: so a short text
    is run with padding before it and without.
    """
    if not all(map(_is_padded, make_prompt_cache(model))):
        return False
    before = mx.stack([PROBE[0, :_PADDING], mx.zeros(_PADDING, dtype=PROBE.dtype)])
    rows = mx.concatenate([before, mx.repeat(PROBE, 2, axis=0)], axis=1)
    # What a family raises where offsets are those of several rows.
    with contextlib.suppress(*REFUSALS):
        padded = model(rows, cache=padded_caches(model, [0, _PADDING]))[1, _PADDING:]
        alone = probe_logits(model)[0]
        limit = _EXACT if alone.dtype == mx.float32 else _ROUNDED
        # NaN is no equality.
        return bool((mx.abs(padded - alone).max() <= limit * mx.abs(alone).max()).item())
    return False


def padded_caches(model: nn.Module, padding: Sequence[int]) -> list[Any]:
    """Empty caches of a model for rows that are padded on the left.

    Args:
        model: an mlx-lm model that `can_be_padded`.
        padding: number of padding tokens of each row.
    """
    return [
        PaddedRotatingCache(cache.max_size, list(padding))
        if isinstance(cache, RotatingKVCache)
        else PaddedCache(list(padding))
        for cache in make_prompt_cache(model)
    ]


def _is_padded(cache: Any) -> bool:
    return type(cache) is KVCache or (type(cache) is RotatingKVCache and cache.keep == 0)


def _with_itself(mask: mx.array) -> mx.array:
    new, keys = mask.shape[-2:]
    # A single new token is never padding. Several new tokens are the last keys, in order.
    return mask if new == 1 else mask | mx.eye(new, keys, keys - new, dtype=mx.bool_)
