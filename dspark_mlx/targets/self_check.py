"""A target's own forwards against each other at load: rows at once, rows singly, rows rolled back.

Speculative decoding is only as right as a forward over several rows. A few of mlx-lm's families
give other logits there than row by row (a mask that does not mask, a window that is one too long),
and a module may be handed its states in a way that the probe does not see. Both are found before
anything is generated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import RotatingKVCache, make_prompt_cache

from ..caches import leaves, new_caches
from ..errors import InputError
from .network import REFUSALS
from .tap import Target

ROWS = 5
"""Rows of the forwards that are compared."""

_BEFORE = 2
# Committed after `_BEFORE` tokens by four forwards of `ROWS` rows that keep 1 to 4 of them.
_KEPT = (1, 2, 3, 4)
_TEXT = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 4, 9)
_OTHER = (6, 11, 17, 29)
# Sixteen bits round every layer's output by up to 2^-8 of it, and quantised weights add nothing to
# that between forwards: a few percent over 60 layers. Families that are wrong differ by tens.
_EXACT, _ROUNDED = 2e-3, 0.05
_HINT = "mlx-lm's forward of this family does not decode several tokens at once."


def check_rollback(target: Target, where: object) -> None:
    """Refuse a target whose rows depend on how many of them run at once, or do not roll back.

    Some forwards over 12 rows or fewer, evaluated together, of the first layers only: as many as it
    takes to have one of each kind of cache. What the output matrix reads is compared, so that it is
    not computed. A difference is looked at again with all layers before it counts.

    Args:
        target: decodes as before afterwards.
        where: names the model in errors.

    Raises:
        InputError: it says which of both differs and by how much.
    """
    limit = _EXACT if target.dtype == mx.float32 else _ROUNDED
    with target.untapped():
        gaps = (np.nan, np.nan)
        # Families that count their layers do not run with fewer.
        with contextlib.suppress(*REFUSALS), _first_layers(target.model) as count:
            gaps = measure_gaps(target.model, where, count)
        if not max(gaps) <= limit:
            gaps = measure_gaps(target.model, where)
    together, rollback = gaps
    # Written so that NaN is refused.
    if not together <= limit:
        found = f"{100 * together:.0f} % other states where rows run together than one by one"
        raise InputError(where, found, "the same", _HINT)
    if not rollback <= limit:
        found = f"{100 * rollback:.0f} % other states behind rows that were taken back"
        raise InputError(where, found, "the same as without them", _HINT)


def measure_gaps(model: nn.Module, where: object, count: int | None = None) -> tuple[float, float]:
    """How far apart forwards are that should agree, as a part of what they give.

    Args:
        model: it runs as it is.
        where: names the model in errors.
        count: caches that it uses; None for all.

    Returns:
        5 rows against 5 single ones, and rows behind rejected ones against a fresh prefill.
    """
    target = Target(model, (), where)
    try:
        with target.head_inputs() as read:
            forwards = _Forwards(target, read)
            whole = forwards.rows(_TEXT, new_caches(model, where)[:count])
            block = _TEXT[_BEFORE:][:ROWS]
            caches = forwards.begun(new_caches(model, where)[:count])
            singly = [forwards.rows((token,), caches) for token in block]
            caches = forwards.begun(new_caches(model, where)[:count])
            gaps = [
                _gap(forwards.rows(block, caches), mx.concatenate(singly)),
                _gap(forwards.with_rejections(new_caches(model, where)[:count]), whole[_BEFORE:]),
            ]
            together, rollback = (float(gap) for gap in np.array(mx.stack(gaps)))
    finally:
        target.close()
    return together, rollback


class _Forwards:
    """Forwards of a target, each giving what its output matrix reads, `[rows, hidden]`."""

    def __init__(self, target: Target, read: list[mx.array]) -> None:
        self._target = target
        self._read = read

    def rows(self, tokens: tuple[int, ...], caches: list[Any]) -> mx.array:
        logits, _ = self._target(self._ids(tokens), caches)
        return self._taken(logits)

    def begun(self, caches: list[Any]) -> list[Any]:
        """Caches that hold the first tokens, over and over where they are a window, until it is
        full: what is wrong with a window shows only there."""
        self.rows(_TEXT[:_BEFORE], caches)
        for leaf in leaves(caches):
            if type(leaf) is RotatingKVCache and not leaf.keep and leaf.offset < leaf.max_size:
                times = -(-leaf.max_size // leaf.offset)
                repeats = (1, 1, times, 1)
                leaf.keys, leaf.values = (
                    mx.tile(a[..., : leaf.offset, :], repeats)[..., : leaf.max_size, :]
                    for a in (leaf.keys, leaf.values)
                )
                leaf.offset = leaf._idx = leaf.max_size
        return caches

    def with_rejections(self, caches: list[Any]) -> mx.array:
        """The text, `ROWS` rows at a time, of which only the first few are its own."""
        self.rows(_TEXT[:_BEFORE], caches)
        position, kept = _BEFORE, []
        for n in _KEPT:
            tokens = _TEXT[position : position + n] + _OTHER[: ROWS - n]
            logits, _, rollback = self._target.verify(self._ids(tokens), caches)
            rollback.keep(n)
            kept.append(self._taken(logits)[:n])
            position += n
        return mx.concatenate(kept)

    def _ids(self, tokens: tuple[int, ...]) -> mx.array:
        return mx.array([token % self._target.vocab_size for token in tokens], dtype=mx.int32)

    def _taken(self, logits: mx.array) -> mx.array:
        """The logits where a model does not call its output matrix as a module."""
        read = self._read[0].squeeze(0) if len(self._read) == 1 else logits
        self._read.clear()
        return read


@contextlib.contextmanager
def _first_layers(model: nn.Module) -> Iterator[int | None]:
    """The model with its first layers only, as many as show every kind of cache.

    Yields their number; None where all layers stay.
    """
    layers, caches = model.layers, make_prompt_cache(model)
    kinds = [tuple(type(leaf) for leaf in leaves([cache])) for cache in caches]
    count = max(2, *(kinds.index(kind) + 1 for kind in kinds))
    if not isinstance(layers, list) or len(caches) != len(layers) or count >= len(layers):
        yield None
        return
    dropped = layers[count:]
    del layers[count:]
    try:
        # A family that lists its layers anew for each call has not become shorter.
        yield count if len(model.layers) == count else None
    finally:
        layers.extend(dropped)


def _gap(a: mx.array, b: mx.array) -> mx.array:
    """How far rows are apart, each as a part of its size; the median of them.

    The median, since in 16 bits a router's near tie may send one row to another expert.
    """
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    rows = mx.sqrt(mx.sum(mx.square(a - b), axis=-1) / (mx.sum(mx.square(b), axis=-1) + 1e-12))
    return mx.sort(rows)[rows.size // 2]
