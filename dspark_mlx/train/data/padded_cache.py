"""mlx-lm's batch caches, with masks in which padding attends to itself.

In mlx-lm's masks padding attends to nothing. MLX's fused attention on CUDA then divides by zero,
and the NaN in the padding's values reaches every row, even with a weight of zero. Real tokens
attend to themselves anyway, so nothing changes for them.
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


def batch_caches(model: nn.Module, padding: Sequence[int]) -> list[Any]:
    """Empty caches of a model for rows that are padded on the left.

    Args:
        model: an mlx-lm model.
        padding: number of padding tokens of each row.

    Raises:
        InputError: the model has a cache of which there is no batched form here.
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
    # A single new token is never padding. Several new tokens are the last keys, in order.
    return mask if new == 1 else mask | mx.eye(new, keys, keys - new, dtype=mx.bool_)
