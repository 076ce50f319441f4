"""A target's own forwards against each other at load: rows at once, rows singly, rows rolled back.

Speculative decoding is only as right as a forward over several rows. A few of mlx-lm's families
give other logits there than row by row (a mask that does not mask, a window that is one too long),
and a module may be handed its states in a way that the probe does not see. Both are found before
anything is generated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import RotatingKVCache

from ..caches import DEFAULT_CACHES, CacheSettings, leaves
from ..errors import InputError
from .network import REFUSALS
from .shortened import one_of_each_kind
from .tables import find_embedding
from .tap import Target

# Two tokens are read, then the others are committed in two ways: one by one, and by three forwards,
# of which the first is over all of them and keeps 1 row, the second keeps 2 of 3.
_BEFORE = (0, 1)
_TEXT = (2, 3, 5, 8)
_FIRST, _SECOND = 1, 2
_OTHER = (6,)
# A window's oldest values are the largest, each three times the next; those behind the first few
# are 0. A row that sees one position too many or too few shows it, however long the window is.
_LARGEST, _EDGE = 512, 8
# Families that are wrong differ by 0.04 and more, the others by 1e-5. Between them is room for what
# a family computes in 16 bits all the same, and for GPUs that round the inputs of a product.
GAP_LIMIT = 0.02
_HINT = "mlx-lm's forward of this family does not decode several tokens at once."


def check_rollback(target: Target, where: object) -> None:
    """Refuse a target whose rows depend on how many of them run at once, or do not roll back.

    Four forwards over 4 rows or fewer, evaluated together: rows at once, of which half are taken
    back, and the same rows one by one behind that. They run one layer of each kind without its
    feed-forward part, and what the output matrix reads is compared, so that it is not computed.
    Activations are float32 whatever the weights are: in 16 bits, rounding alone makes as much of
    a difference as some faults. A difference is looked at again, see `measure_gaps`.

    Args:
        target: decodes as before afterwards.
        where: names the model in errors.

    Raises:
        InputError: it says which of both differs and by how much.
    """
    if target.rolls_back:
        return
    with target.untapped():
        for settings in cache_ways(target.cache_settings):
            _check(target.model, where, settings)
    target.rolls_back = True


def cache_ways(settings: CacheSettings) -> list[CacheSettings]:
    """The settings that a request decodes with: before its caches are quantized, and then."""
    # Whether the rows of a limited cache agree depends on the cache alone, not on the model.
    settings = replace(settings, max_kv_size=None)
    plain = replace(settings, kv_bits=None)
    return [plain] if settings.kv_bits is None else [plain, settings.quantized_at_once]


def _check(model: nn.Module, where: object, settings: CacheSettings) -> None:
    gap = np.nan
    # Families that count their layers do not run with fewer.
    with contextlib.suppress(*REFUSALS), one_of_each_kind(model) as count:
        gap = _quick_gap(model, where, settings, count)
    if gap <= GAP_LIMIT:
        return
    together, rollback = measure_gaps(model, where, settings)
    caches = f" with kv_bits {settings.kv_bits}" if settings.kv_bits else ""
    # Written so that NaN is refused.
    if not together <= GAP_LIMIT:
        what = f"other states where rows run together than one by one{caches}"
        raise InputError(where, f"{100 * together:.0f} % {what}", "the same", _HINT)
    if not rollback <= GAP_LIMIT:
        what = f"other states behind rows that were taken back{caches}"
        found = f"{100 * rollback:.0f} % {what}"
        raise InputError(where, found, "the same as without them", _HINT)


def _quick_gap(
    model: nn.Module, where: object, settings: CacheSettings, count: int | None
) -> float:
    """How far rows are apart from single rows behind a rollback, which ought to give the same."""
    with _forwards(model, where, settings) as forwards:
        caches = forwards.begun(count)
        half = len(_TEXT) // 2
        block = forwards.kept(_TEXT, half, caches)
        singly = mx.concatenate([forwards.rows((token,), caches) for token in _TEXT[half:]])
        return float(np.array(row_gaps(block[half:], singly).max()))


def measure_gaps(
    model: nn.Module, where: object, settings: CacheSettings = DEFAULT_CACHES
) -> tuple[float, float]:
    """How far apart forwards are that should agree, as a part of what they give.

    Args:
        model: it runs as it is.
        where: names the model in errors.
        settings: of the caches.

    Returns:
        Rows together against single ones, and rows behind rejected ones against the same.
    """
    with _forwards(model, where, settings) as forwards:
        caches = forwards.begun()
        singly = mx.concatenate([forwards.rows((token,), caches) for token in _TEXT])
        caches = forwards.begun()
        end = _FIRST + _SECOND
        block = forwards.kept(_TEXT, _FIRST, caches)
        second = forwards.kept(_TEXT[_FIRST:end] + _OTHER, _SECOND, caches)
        third = forwards.rows(_TEXT[end:], caches)
        together = _gap(block, singly)
        rollback = mx.maximum(_gap(second[:_SECOND], singly[_FIRST:end]), _gap(third, singly[end:]))
        found: list[float] = np.array(mx.stack([together, rollback])).tolist()
    return found[0], found[1]


@contextlib.contextmanager
def _forwards(model: nn.Module, where: object, settings: CacheSettings) -> Iterator[_Forwards]:
    target = Target(model, (), where, settings)
    try:
        with float32_embeddings(find_embedding(model, where)), target.head_inputs() as read:
            yield _Forwards(target, read)
    finally:
        target.close()


class _Forwards:
    """Forwards of a target, each giving what its output matrix reads, `[rows, hidden]`."""

    def __init__(self, target: Target, read: list[mx.array]) -> None:
        self._target = target
        self._read = read

    def begun(self, count: int | None = None) -> list[Any]:
        """Caches that hold the first tokens; windows are full, since what is wrong with one shows
        only there.

        Args:
            count: caches to make; None for all.
        """
        caches = self._target.new_caches()[:count]
        self.rows(_BEFORE, caches)
        fill_windows(caches)
        return caches

    def rows(self, tokens: tuple[int, ...], caches: list[Any]) -> mx.array:
        """A forward over the tokens."""
        logits, _ = self._target(self._ids(tokens), caches)
        return self._taken(logits)

    def kept(self, tokens: tuple[int, ...], n: int, caches: list[Any]) -> mx.array:
        """The same, cut back to the first `n` rows afterwards."""
        logits, _, rollback = self._target.verify(self._ids(tokens), caches)
        rollback.keep(n)
        return self._taken(logits)

    def _ids(self, tokens: tuple[int, ...]) -> mx.array:
        return mx.array([token % self._target.vocab_size for token in tokens], dtype=mx.int32)

    def _taken(self, logits: mx.array) -> mx.array:
        """The logits where a model does not call its output matrix as a module."""
        read = self._read[0].squeeze(0) if len(self._read) == 1 else logits
        self._read.clear()
        return read


def fill_windows(caches: list[Any]) -> None:
    """Fill the windows that hold a few positions, by those."""
    for leaf in leaves(caches):
        if type(leaf) is RotatingKVCache and not leaf.keep and 0 < leaf.offset < leaf.max_size:
            _fill(leaf)


def _fill(window: RotatingKVCache) -> None:
    """Fill a window by what it holds, over and over, with the oldest values the largest."""
    held, size = window.offset, window.max_size
    repeats = (1, 1, -(-size // held), 1)
    keys, values = (
        mx.tile(stored[..., :held, :], repeats)[..., :size, :]
        for stored in (window.keys, window.values)
    )
    scale = np.zeros(size, dtype=np.float32)
    scale[:_EDGE] = min(size, _LARGEST) * 3.0 ** -np.arange(min(size, _EDGE))
    window.keys, window.values = keys, values * mx.array(scale[:, None]).astype(values.dtype)
    window.offset = window._idx = size


@contextlib.contextmanager
def float32_embeddings(embedding: nn.Module) -> Iterator[None]:
    """Float32 embeddings, which make what is computed of them float32: MLX promotes types."""
    original: Any = type(embedding)
    call = original.__call__

    def promoted(self: nn.Module, tokens: mx.array) -> mx.array:
        return call(self, tokens).astype(mx.float32)

    embedding.__class__ = type(original.__name__, (original,), {"__call__": promoted})
    try:
        yield
    finally:
        embedding.__class__ = original


def _gap(a: mx.array, b: mx.array) -> mx.array:
    """How far rows are apart: the median, the smaller of two.

    The median, since a router's near tie may send one row to another expert.
    """
    rows = mx.sort(row_gaps(a, b))
    return rows[(rows.size - 1) // 2]


def row_gaps(a: mx.array, b: mx.array) -> mx.array:
    """How far each row is apart, as a part of its size."""
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    return mx.sqrt(mx.sum(mx.square(a - b), axis=-1) / (mx.sum(mx.square(b), axis=-1) + 1e-12))
