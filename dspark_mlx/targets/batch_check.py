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

from ..caches import CacheSettings
from ..caches.batch import can_join, join
from .network import REFUSALS
from .self_check import GAP_LIMIT, float32_embeddings, row_gaps
from .tables import find_embedding
from .tap import Target

_PROMPTS = ((0, 1), (2, 3, 5, 8, 6, 1, 4))
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

    Args:
        model: it runs as it is.
        where: names the model in errors.
        settings: of the caches.
    """
    target = Target(model, (), where, settings)
    try:
        with float32_embeddings(find_embedding(model, where)):
            alone, batch = _prompts_read(target), join(_prompts_read(target))
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
    finally:
        target.close()


def _prompts_read(target: Target) -> list[list[Any]]:
    read = []
    for tokens in _PROMPTS:
        caches = target.new_caches()
        target(mx.array(tokens) % target.vocab_size, caches)
        target.cache_settings.quantize(caches)
        read.append(caches)
    return read
