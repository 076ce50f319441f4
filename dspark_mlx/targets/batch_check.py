"""A target's forwards over two requests at once against those over each of them alone.

Families differ in what they make of positions by request. A few give other results in a batch (a
mask that all requests share, states that are laid out by rows); their requests run one by one.
"""

from __future__ import annotations

import contextlib
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import KVCache

from ..caches import CacheSettings, leaves
from ..caches.batch import can_join, join
from .network import REFUSALS
from .self_check import GAP_LIMIT, float32_embeddings, row_gaps
from .tables import find_embedding
from .tap import Target

_PROMPTS = ((0, 1), (2, 3, 5, 8, 6, 1, 4))
# Positions behind which published indexers choose, of two requests: 2048 and more.
_LONG = 2600, 4200
_ROWS, _KEPT = ((5, 2, 7, 1, 3), (4, 8, 2, 6, 0)), (2, 4)


def runs_in_batches(target: Target) -> bool:
    """Whether several requests in one forward get what each of them gets alone.

    Looked at once, by a few forwards over few rows. A batch never has the bits of an exact target.

    Args:
        target: decodes as before afterwards.
    """
    if target.exact:
        return False
    if target.batches is None:
        target.batches = _measured(target)
    return target.batches


def _measured(target: Target) -> bool:
    settings = target.cache_settings
    # Requests whose caches are quantized at different times have different kinds of them.
    changes = settings.kv_bits is not None and settings.quantized_kv_start > 1
    if changes or not can_join(target.new_caches()):
        return False
    gap = np.nan
    # What a family raises in a batch says the same.
    with target.untapped(), contextlib.suppress(*REFUSALS):
        gap = batch_gap(target.model, target.where, settings)
    return bool(gap <= GAP_LIMIT)


def batch_gap(model: nn.Module, where: object, settings: CacheSettings) -> float:
    """How far a batch's logits are from its requests' own, as a part of them.

    Two requests at different positions read rows, of which each keeps another number, and more.
    An indexer leaves positions out behind long texts only, so that it is looked at there too.

    Args:
        model: it runs as it is.
        where: names the model in errors.
        settings: of the caches.
    """
    target = Target(model, (), where, settings)
    try:
        with float32_embeddings(find_embedding(model, where)):
            behind = [(0, 0), _LONG] if _has_indexer(target.new_caches()) else [(0, 0)]
            return float(np.max([_gap(target, lengths) for lengths in behind]))
    finally:
        target.close()


def _gap(target: Target, lengths: tuple[int, int]) -> float:
    alone, batch = _prompts_read(target, lengths), join(_prompts_read(target, lengths))
    rows = mx.array(_ROWS) % target.vocab_size
    _, _, rollback = target.verify(rows, batch)
    rollback.keep_each(_KEPT)
    for i, caches in enumerate(alone):
        _, _, rollback = target.verify(rows[i], caches)
        rollback.keep(_KEPT[i])
    together, _ = target(rows[:, :3], batch)
    singly = [target(rows[i, :3], caches)[0] for i, caches in enumerate(alone)]
    # The median, since a router's near tie may send one row to another expert.
    gaps = [mx.sort(row_gaps(together[i], own))[1] for i, own in enumerate(singly)]
    return float(np.array(mx.stack(gaps)).max())


def _prompts_read(target: Target, lengths: tuple[int, int]) -> list[list[Any]]:
    """Caches of two requests that have read a few tokens, behind noise of such lengths."""
    read = []
    for tokens, length in zip(_PROMPTS, lengths, strict=True):
        caches = target.new_caches()
        target(mx.array(tokens) % target.vocab_size, caches)
        if length:
            _lengthen(caches, length)
        target.cache_settings.quantize(caches)
        read.append(caches)
    return read


def _has_indexer(caches: list[Any]) -> bool:
    """Whether a layer keeps several keys: some of them choose the positions that it reads."""
    return any(sum(type(leaf) is KVCache for leaf in leaves([cache])) > 1 for cache in caches)


def _lengthen(caches: list[Any], positions: int) -> None:
    """Put noise behind keys and values up to so many positions, which takes no forward."""
    plain = [cache for cache in leaves(caches) if type(cache) is KVCache]
    seeds = mx.random.split(mx.random.key(0), 2 * len(plain))
    for i, cache in enumerate(plain):
        stored = cache.keys[..., : cache.offset, :], cache.values[..., : cache.offset, :]
        cache.keys, cache.values = (
            mx.concatenate([a, _noise(a, positions - cache.offset, seeds[2 * i + j])], axis=2)
            for j, a in enumerate(stored)
        )
        cache.offset = positions


def _noise(stored: mx.array, rows: int, seed: mx.array) -> mx.array:
    """As many rows of the size that stored ones have."""
    shape = (*stored.shape[:2], rows, stored.shape[3])
    noise = mx.random.normal(shape, key=seed) * (mx.std(stored) if stored.size else 1.0)
    return noise.astype(stored.dtype)
