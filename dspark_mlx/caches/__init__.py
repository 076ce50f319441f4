"""The target's caches by mlx-lm's class: which of them roll back exactly, one file a kind.

After `keep_rows(caches, width, n)` the next logits equal those of a fresh prefill of the committed
tokens. A new kind is a file beside these and a line in `CACHES`.
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
    """Empty caches for one request.

    Raises:
        InputError: the model uses a cache that cannot be rolled back exactly here.
    """
    caches = make_prompt_cache(model)
    for cache in caches:
        if type(cache) not in CACHES:
            names = ", ".join(kind.__name__ for kind in CACHES)
            found = f"a model with {type(cache).__name__}"
            raise InputError(where, found, f"a model whose caches are {names}")
    return caches


def keep_rows(caches: list[Any], width: int, n: int) -> None:
    """Keep the first `n` of the last `width` rows, the ones a verify forward just wrote.

    At least one where a cache rotates: mlx-lm's own bookkeeping of a full window needs it.
    """
    if width == n:
        return
    for cache in caches:
        CACHES[type(cache)].drop(cache, width - n)


def cache_arrays(caches: list[Any]) -> list[mx.array]:
    """Every array the caches hold, for evaluation after a prefill chunk."""
    return [a for cache in caches if not cache.empty() for a in CACHES[type(cache)].arrays(cache)]
