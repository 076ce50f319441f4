"""Small models with every kind of cache, and a request that keeps some rows of every round."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models import deepseek_v41
from mlx_lm.models.cache import CacheList, KVCache, QuantizedKVCache, make_prompt_cache

from dspark_mlx.caches.rotating import SinkKVCache
from dspark_mlx.targets.tap import Target

from .deepseek_v4 import model as deepseek_v4
from .families import family
from .tiny_models import tiny

WINDOW = 8

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


def sinks():
    return SinkKVCache(max_size=WINDOW, keep=2)


MODELS = {
    "plain": lambda: tiny("llama"),
    "quantized": lambda: Cached(tiny("llama", head_dim=32), each(quantized)),
    "window": lambda: tiny("gpt_oss"),
    "window with its first positions": lambda: Cached(tiny("llama"), each(sinks)),
    "chunks": lambda: family("llama4"),
    "delta net and attention": lambda: family("qwen3_next"),
    "convolution": lambda: family("lfm2"),
    "state space": lambda: family("mamba2"),
    "two mixers on one state": lambda: family("rwkv7"),
    "list of states and keys": lambda: family("falcon_h1"),
    "list of states and a window": lambda: family("baichuan_m1"),
    "list of keys": lambda: family("deepseek_v32"),
    "list of plain": lambda: Cached(tiny("llama"), make_prompt_cache, listed=True),
    "list of quantized": lambda: Cached(tiny("llama", head_dim=32), each(quantized), listed=True),
    "list of windows": lambda: Cached(tiny("gpt_oss"), make_prompt_cache, listed=True),
    "list of windows with their first positions": lambda: Cached(
        tiny("llama"), each(sinks), listed=True
    ),
    "list of chunks": lambda: Cached(family("llama4"), make_prompt_cache, listed=True),
    "list of states": lambda: Cached(family("mamba2"), make_prompt_cache, listed=True),
    "list of groups": lambda: Cached(family("deepseek_v41"), make_prompt_cache, listed=True),
    "window and groups": lambda: family("deepseek_v41"),
    "list of compressed windows": lambda: Cached(deepseek_v4(), make_prompt_cache, listed=True),
    "compressed windows": deepseek_v4,
}
"""Every kind of cache, alone and in a list."""

ALWAYS = [name for name in MODELS if not name.startswith("list of")]
ALWAYS.append("list of states and a window")


def without_rounding(patch):
    """DeepSeek V4.1 with exact keys.

    It rounds keys to 8 and 4 bits in its forward. A key that lies between two such numbers goes
    either way by the last bit of a float32, so that its forwards over the same tokens in different
    chunks differ by percents, see `test_rounded_keys_differ_by_the_chunks_alone`.
    """
    patch.setattr(deepseek_v41, "_fake_quant_fp8", lambda x, block_size=32: x)
    patch.setattr(deepseek_v41, "_fake_quant_fp4", lambda x, *, block_size, e4m3_scale=False: x)


class Session:
    """A request's caches and the committed tokens that they stand for."""

    def __init__(self, target: Target, seed: int) -> None:
        self.target = target
        self.rng = np.random.default_rng(seed)
        self.caches = make_prompt_cache(target.model)
        self.committed: list[int] = []

    def prefill(self, length: int) -> None:
        self.committed = self.rng.integers(0, 64, length).tolist()
        self.target(mx.array(self.committed), self.caches)

    def round(self, width: int, n: int) -> mx.array:
        """Verify `width` random rows and keep `n`; logits of the last row kept."""
        rows = self.rng.integers(0, 64, width).tolist()
        logits, _, rollback = self.target.verify(mx.array(rows), self.caches)
        rollback.keep(n)
        self.committed += rows[:n]
        return logits[n - 1]

    def check(self, logits: mx.array) -> None:
        model = self.target.model
        fresh = model(mx.array([self.committed]), cache=make_prompt_cache(model))[0, -1]
        error = gap(logits, fresh)
        assert error < limit(self.target.where), f"{len(self.committed)} tokens: {error:.1e}"


def gap(a: mx.array, b: mx.array) -> float:
    return float(np.array(mx.abs(a - b).max() / mx.abs(b).max()))
