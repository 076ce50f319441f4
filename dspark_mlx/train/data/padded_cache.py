"""mlx-lm's batch caches, with masks in which padding sees itself.

A padded token sees nothing in mlx-lm's masks. MLX's fused attention on CUDA then divides by zero,
and the NaN in the padding's values reaches every row that multiplies them by a weight of zero. A
token always sees itself anyway, so nothing changes for those that count.
"""

from __future__ import annotations

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

from ...errors import InputError


class PaddedCache(BatchKVCache):
    """A cache of rows padded on the left."""

    def make_mask(self, N: int, return_array: bool = False, **window: Any) -> mx.array:
        """Bool `[rows, 1, N, keys]`, True where a new token sees a key."""
        return _with_itself(super().make_mask(N, return_array=return_array, **window))


class PaddedRotatingCache(BatchRotatingKVCache):
    """The same with a window."""

    def make_mask(
        self, N: int, window_size: int | None = None, return_array: bool = False
    ) -> mx.array:
        """Bool `[rows, 1, N, keys]`, True where a new token sees a key."""
        return _with_itself(super().make_mask(N, window_size, return_array))


def batch_caches(model: nn.Module, padding: Sequence[int]) -> list[Any]:
    """Empty caches for rows that are padded on the left.

    Raises:
        InputError: the model uses a cache without a batched form here.
    """
    caches: list[Any] = []
    for cache in make_prompt_cache(model):
        if type(cache) is KVCache:
            caches.append(PaddedCache(list(padding)))
        elif type(cache) is RotatingKVCache and cache.keep == 0:
            caches.append(PaddedRotatingCache(cache.max_size, list(padding)))
        else:
            found = f"a model with {type(cache).__name__}"
            raise InputError("batch", found, "a model whose caches are KVCache or RotatingKVCache")
    return caches


def _with_itself(mask: mx.array) -> mx.array:
    new, keys = mask.shape[-2:]
    # One new token is never padding; several are the last keys, in order.
    return mask if new == 1 else mask | mx.eye(new, keys, keys - new, dtype=mx.bool_)
