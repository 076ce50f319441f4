"""The target's caches by mlx-lm's class: which of them roll back exactly, one file a kind.

After `keep_rows(caches, width, n)` the next logits equal those of a fresh prefill of the committed
tokens, where no cache is recurrent; where one is, `targets.rollback` computes the rest. A new kind
is a file beside these and a line in `CACHES`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import CacheList, make_prompt_cache

from ..errors import InputError
from .batch import BatchCaches
from .batch_attention import BatchKVCache
from .deepseek_v4 import CompressedCache
from .deepseek_v41 import LayerStateCache
from .kinds import CacheKind
from .recurrent import RecurrentCache
from .rotating import LimitedCache, LimitedKVCache, RotatingCache, SinkCache
from .settings import DEFAULT_CACHES, CacheSettings
from .trimmable import ChunkedCache, PlainCache, QuantizedCache

_KINDS: tuple[type[CacheKind], ...] = (
    PlainCache,
    QuantizedCache,
    RotatingCache,
    SinkCache,
    LimitedCache,
    ChunkedCache,
    RecurrentCache,
    LayerStateCache,
    CompressedCache,
)
CACHES: dict[type, type[CacheKind]] = {kind.CACHE: kind for kind in _KINDS}


def new_caches(
    model: nn.Module, where: object, settings: CacheSettings = DEFAULT_CACHES
) -> list[Any]:
    """Empty caches for one request.

    Raises:
        InputError: the model uses a cache that cannot be rolled back exactly here, or that cannot
            be as the settings want it.
    """
    caches = make_prompt_cache(model, settings.max_kv_size)
    settings.refuse_unquantized(caches, where)
    if settings.max_kv_size is not None and not settings.ignored_by(model):
        caches = [LimitedKVCache(settings.max_kv_size, cache.keep) for cache in caches]
    for leaf in leaves(caches):
        if type(leaf) not in CACHES:
            names = ", ".join(kind.__name__ for kind in CACHES)
            found = f"a model with {type(leaf).__name__}"
            raise InputError(where, found, f"a model whose caches are {names}")
    return caches


def leaves(caches: Sequence[Any]) -> list[Any]:
    """The caches, with those in place of a `CacheList` that it holds, to any depth."""
    found: list[Any] = []
    for cache in caches:
        found += leaves(cache.caches) if isinstance(cache, CacheList) else [cache]
    return found


def is_recurrent(cache: object) -> bool:
    """Whether a cache's rows have to be computed again where a forward is cut back."""
    kind = CACHES.get(type(cache))
    return kind is not None and kind.RECURRENT


def takes_out_newest_only(caches: Sequence[Any]) -> bool:
    """Whether one of the caches can take out rows of the newest forward only, and not its first."""
    return any(CACHES[type(leaf)].NEWEST_ONLY for leaf in leaves(caches))


def snapshot(caches: Sequence[Any]) -> list[Any]:
    """What `keep_rows` needs to know from before a forward, leaf by leaf; copies no array."""
    found = leaves(caches)
    return [CACHES[type(c)].snapshot(c) if type(c) in CACHES else None for c in found]


def keep_rows(
    caches: Sequence[Any], width: int, n: int, before: Sequence[Any] | None = None
) -> None:
    """Keep the first `n` of the last `width` rows, the ones a verify forward just wrote.

    At least one where a cache rotates: mlx-lm's own bookkeeping of a full window needs it.
    Recurrent caches go back to where they were before the forward.

    Args:
        caches: changed in place.
        width, n: rows.
        before: `snapshot` of the caches before that forward; needed where one is recurrent.
    """
    if width == n:
        return
    found = leaves(caches)
    for leaf, saved in zip(found, before or [None] * len(found), strict=True):
        CACHES[type(leaf)].drop(leaf, width - n, saved)


def keep_rows_each(caches: BatchCaches, width: int, kept: Sequence[int]) -> None:
    """Keep the first `kept[i]` of the last `width` rows of request i, where caches have positions.

    Recurrent states stay as they are: `targets.rollback` computes each request's.
    """
    for leaf in leaves(caches):
        if isinstance(leaf, BatchKVCache):
            leaf.drop([width - n for n in kept])


@contextlib.contextmanager
def as_single_rows(caches: Sequence[Any]) -> Iterator[None]:
    """Let the rows of forwards in the block read what each of them would read alone."""
    found = [leaf for leaf in leaves(caches) if isinstance(leaf, LimitedKVCache)]
    for leaf in found:
        leaf.as_single_rows = True
    try:
        yield
    finally:
        for leaf in found:
            leaf.as_single_rows = False


def cache_arrays(caches: Sequence[Any]) -> list[mx.array]:
    """Every array the caches hold, for evaluation after a prefill chunk."""
    arrays: list[mx.array] = []
    for leaf in leaves(caches):
        batch = isinstance(leaf, BatchKVCache)
        arrays += leaf.arrays() if batch else CACHES[type(leaf)].arrays(leaf)
    return arrays


def bytes_per_token(caches: Sequence[Any]) -> int:
    """Bytes that each further position of a request takes in its caches."""
    return sum(CACHES[type(leaf)].bytes_per_token(leaf) for leaf in leaves(caches))


def bytes_at(caches: Sequence[Any], tokens: int, rows: int) -> int:
    """Bytes of a request's caches at a number of positions; arguments as `CacheKind.bytes_at`."""
    return sum(CACHES[type(leaf)].bytes_at(leaf, tokens, rows) for leaf in leaves(caches))


def unread_arrays(caches: Sequence[Any]) -> list[mx.array]:
    """States that the next forward reads and that this one's logits need not have computed."""
    found = [leaf for leaf in leaves(caches) if (kind := CACHES.get(type(leaf))) and kind.UNREAD]
    return cache_arrays(found)
