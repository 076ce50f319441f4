"""A model whose caches a test chooses."""

from __future__ import annotations

import mlx.nn as nn
from mlx_lm.models.cache import CacheList, KVCache, QuantizedKVCache

EXACT, ROUNDED = 1e-5, 1e-2
"""Limits of relative differences between next logits."""


def limit(name: object) -> float:
    """The limit for a model of that name. Keys kept in 8 bits may be rounded either way by the last
    bit of a float32, so that mlx-lm's own prefills of one text in two chunkings differ by 1e-3."""
    return ROUNDED if "quantized" in str(name) else EXACT


class Cached(nn.Module):
    """A model with the caches that `make` gives for it, each in a `CacheList` if `listed`."""

    def __init__(self, model: nn.Module, make, listed: bool = False) -> None:
        super().__init__()
        self.inner = model
        self._make, self._listed = make, listed

    @property
    def layers(self):
        return self.inner.layers

    def make_cache(self):
        made = self._make(self.inner)
        return [CacheList(cache) for cache in made] if self._listed else made

    def __call__(self, tokens, cache=None):
        if cache is not None and self._listed:
            cache = [part[0] for part in cache]
        return self.inner(tokens, cache=cache)


def each(make):
    """As many caches as the model has layers."""
    return lambda model: [make() for _ in model.layers]


def quantized() -> QuantizedKVCache:
    """In 8 bits, for heads of 32."""
    return KVCache().to_quantized(group_size=32, bits=8)
