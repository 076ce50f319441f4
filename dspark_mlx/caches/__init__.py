"""The target's caches: which kinds roll back exactly, and how each one does.

After `commit(caches, width, n)` the next logits equal those of a fresh prefill of the committed
tokens.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache, QuantizedKVCache, RotatingKVCache, make_prompt_cache

from ..errors import InputError


def new_caches(model: nn.Module, where: object) -> list[Any]:
    """Empty caches for one request.

    Raises:
        InputError: the model uses a cache that cannot be rolled back exactly here.
    """
    caches = make_prompt_cache(model)
    supported = (KVCache, QuantizedKVCache, RotatingKVCache)
    for cache in caches:
        if type(cache) not in supported:
            names = ", ".join(kind.__name__ for kind in supported)
            found = f"a model with {type(cache).__name__}"
            raise InputError(where, found, f"a model whose caches are {names}")
    return caches


def commit(caches: list[Any], width: int, n: int) -> None:
    """Keep the first `n` of the last `width` rows, the ones a verify forward just wrote.

    At least one where a cache rotates: mlx-lm's own bookkeeping of a full window needs it.
    """
    drop = width - n
    if drop:
        for cache in caches:
            if type(cache) is RotatingKVCache:
                _drop_rotating(cache, drop)
            else:
                cache.trim(drop)


def _drop_rotating(cache: RotatingKVCache, drop: int) -> None:
    # A forward over several rows leaves them last, in order, behind at least max_size - 1 older
    # ones, so cutting them off loses nothing that the window still covers. trim() only moves the
    # write position, which is wrong once the window has wrapped.
    assert cache.keys is not None and cache._idx == cache.keys.shape[2]
    cache.keys = cache.keys[..., :-drop, :]
    cache.values = cache.values[..., :-drop, :]
    cache.offset -= drop
    cache._idx -= drop
    # The next round may be computed by another thread.
    mx.async_eval(cache.keys, cache.values)


def cache_arrays(caches: list[Any]) -> list[mx.array]:
    """Every array the caches hold, for evaluation after a prefill chunk."""
    arrays: list[mx.array] = []
    for cache in caches:
        if not cache.empty():
            arrays += [a for part in (cache.keys, cache.values) for a in _leaves(part)]
    return arrays


def _leaves(part: Any) -> list[mx.array]:
    return [part] if isinstance(part, mx.array) else list(part)
