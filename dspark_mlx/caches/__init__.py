"""The target's caches: making them and rolling them back exactly.

After `keep_rows`, the next logits equal those of a fresh prefill of the tokens that are kept. To
add a kind of cache, add a class in a file beside this one and put it into `_KINDS`.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from ..errors import InputError
from .kinds import CacheKind
from .rotating import RotatingCache
from .trimmable import PlainCache, QuantizedCache

_KINDS: tuple[type[CacheKind], ...] = (PlainCache, QuantizedCache, RotatingCache)
CACHES: dict[type, type[CacheKind]] = {kind.CACHE: kind for kind in _KINDS}


def new_caches(model: nn.Module, where: object) -> list[Any]:
    """Empty caches for one request, one per layer of the target.

    Args:
        model: the target's model.
        where: names the model in errors.

    Raises:
        InputError: the model has a kind of cache that is not in `CACHES`.
    """
    caches = make_prompt_cache(model)
    for cache in caches:
        if type(cache) not in CACHES:
            names = ", ".join(kind.__name__ for kind in CACHES)
            found = f"a model with {type(cache).__name__}"
            raise InputError(where, found, f"a model whose caches are {names}")
    return caches


def keep_rows(caches: list[Any], written: int, kept: int) -> None:
    """Remove what the newest forward wrote into the caches, except its first rows.

    Args:
        caches: the target's caches.
        written: number of rows that the forward wrote.
        kept: how many of them to keep; at least 1 for a rotating cache, since mlx-lm's own state of
            a full window needs one.
    """
    if written == kept:
        return
    for cache in caches:
        CACHES[type(cache)].drop(cache, written - kept)


def cache_arrays(caches: list[Any]) -> list[mx.array]:
    """Every array that the caches hold, to be evaluated after a prefill chunk."""
    return [a for cache in caches if not cache.empty() for a in CACHES[type(cache)].arrays(cache)]
