"""Caches of several requests in one: they join after their prompts, keep rows each, and leave.

A batch is a list of caches like a request's own, so that mlx-lm's models run over it unchanged.
Attention's are `batch_attention`'s; recurrent states are mlx-lm's ArraysCache with a row per
request, which have no positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import mlx.core as mx
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
)

from .batch_attention import BatchKVCache, BatchQuantizedKVCache, BatchWindowCache
from .trimmable import is_unwritten

BatchCaches: TypeAlias = list[Any]
"""Caches of several requests, one per layer."""

BATCHES: dict[type, type[BatchKVCache]] = {
    KVCache: BatchKVCache,
    QuantizedKVCache: BatchQuantizedKVCache,
    RotatingKVCache: BatchWindowCache,
}
"""The batch of each kind of one request's cache; ArraysCache is a batch itself."""


def can_join(caches: Sequence[Any]) -> bool:
    """Whether requests with such caches can run in one forward; else they run one at a time."""
    return all(
        can_join(cache.caches)
        if isinstance(cache, CacheList)
        else type(cache) in BATCHES or type(cache) is ArraysCache
        for cache in caches
    )


def join(parts: Sequence[Sequence[Any]]) -> BatchCaches:
    """One batch of requests and batches, in their order; no array is shared with them.

    Args:
        parts: caches of requests that have read their prompts, or of batches; `can_join` holds.
    """
    return [_joined(layer) for layer in zip(*parts, strict=True)]


def rows_of(caches: BatchCaches, requests: Sequence[int]) -> BatchCaches:
    """The batch of the requests at these indices, in that order; the others have left."""
    return [_rows(cache, requests) for cache in caches]


def alone(caches: BatchCaches, request: int) -> list[Any]:
    """The caches of the request at an index, as `new_caches` makes them."""
    return [_alone(cache, request) for cache in caches]


def _joined(caches: Sequence[Any]) -> Any:
    first = caches[0]
    if isinstance(first, CacheList):
        return CacheList(*map(_joined, zip(*(c.caches for c in caches), strict=True)))
    if type(first) is ArraysCache:
        states = zip(*(cache.cache for cache in caches), strict=True)
        return _states([mx.concatenate(list(parts)) for parts in states])
    if is_unwritten(first):
        return KVCache()
    batches = [BATCHES[type(c)].of(c) if type(c) in BATCHES else c for c in caches]
    return batches[0].joined(batches[1:])


def _rows(cache: Any, requests: Sequence[int]) -> Any:
    if isinstance(cache, CacheList):
        return CacheList(*(_rows(part, requests) for part in cache.caches))
    if type(cache) is ArraysCache:
        return _states(rows_of_states(cache.cache, requests))
    return KVCache() if is_unwritten(cache) else cache.rows(requests)


def _alone(cache: Any, request: int) -> Any:
    if isinstance(cache, CacheList):
        return CacheList(*(_alone(part, request) for part in cache.caches))
    if type(cache) is ArraysCache:
        return _rows(cache, [request])
    return KVCache() if is_unwritten(cache) else cache.alone(request)


def rows_of_states(states: Sequence[mx.array], requests: Sequence[int]) -> list[mx.array]:
    """Recurrent states `[batch, ...]` of the requests at these indices."""
    taken = mx.array(list(requests))
    return [state[taken] for state in states]


def _states(states: Sequence[mx.array]) -> ArraysCache:
    made = ArraysCache(len(states))
    made.cache = list(states)
    return made
