"""The target's attention: a window of latent rows, and compressed entries of all that is older."""

from __future__ import annotations

import mlx.core as mx

from ...caches.deepseek_v4 import DeepseekV4Cache
from ...deepseek_v4.attention import LatentAttention
from ...deepseek_v4.config import OVERLAPPING, ModelArgs
from .compression import Compressor, Indexer, visible_entries

_ROWS_AT_ONCE = 256
"""Rows whose attention is computed together: each sees a short window only, and a prompt's chunk of
thousands would hold scores of all of them against all."""


class WindowAttention(LatentAttention):
    """A row sees the newest rows of its window only."""

    def __init__(self, args: ModelArgs, ratio: int = 0) -> None:
        super().__init__(args, ratio)
        self._window = args.sliding_window

    def __call__(self, x: mx.array, cache: DeepseekV4Cache) -> mx.array:
        """The sublayer's output for a forward's rows, `[batch, rows, hidden]`.

        Args:
            x: its normed input, of the same shape.
            cache: the layer's, to which the rows are added.
        """
        offset = cache.offset
        low = self.low_rank_queries(x)
        queries = self.queries(low, offset)
        entries, chosen = self._compressed(x, low, cache)
        window = cache.update_window(self.rows(x, offset))
        rows, before = x.shape[1], window.shape[1] - x.shape[1]
        parts = []
        for start in range(0, rows, _ROWS_AT_ONCE):
            end = min(start + _ROWS_AT_ONCE, rows)
            part, oldest = slice(start, end), max(before + start - self._window + 1, 0)
            some, seen = queries[:, :, part], window[:, oldest : before + end]
            if entries is not None and chosen is not None:
                parts.append(self._over_chosen(some, seen, entries, chosen[:, part]))
            else:
                parts.append(self._over_all(some, seen, entries, offset + start))
        return self.output(parts[0] if len(parts) == 1 else mx.concatenate(parts, 2), offset)

    def make_cache(self) -> DeepseekV4Cache:
        """An empty cache for this layer."""
        return DeepseekV4Cache(self._window)

    def _compressed(
        self, x: mx.array, low: mx.array, cache: DeepseekV4Cache
    ) -> tuple[mx.array | None, mx.array | None]:
        """Entries `[batch, entries, width]`, and those that each row sees; None for none or all."""
        return None, None

    def _over_all(
        self, queries: mx.array, window: mx.array, entries: mx.array | None, offset: int
    ) -> mx.array:
        rows, held = queries.shape[2], window.shape[1]
        if entries is None:
            mask = self._in_window(held, rows)
            return self.attend(queries, window, None if rows == 1 else mask)
        seen = mx.concatenate([window, entries], axis=1)
        if rows == 1:
            return self.attend(queries, seen, None)
        older = visible_entries(entries.shape[1], rows, offset, self._ratio)
        return self.attend(queries, seen, mx.concatenate([self._in_window(held, rows), older], 1))

    def _over_chosen(
        self, queries: mx.array, window: mx.array, entries: mx.array, chosen: mx.array
    ) -> mx.array:
        batch, rows = chosen.shape[:2]
        end = window.shape[1] - rows + mx.arange(rows)[:, None]
        newest = mx.maximum(end - mx.arange(min(self._window, window.shape[1])), -1)
        newest = mx.broadcast_to(newest, (batch, *newest.shape))
        seen = [taken_rows(window, newest), taken_rows(entries, chosen)]
        counts = mx.concatenate([newest, chosen], axis=-1) >= 0
        return self.attend_each(queries, mx.concatenate(seen, axis=2), counts)

    def _in_window(self, held: int, rows: int) -> mx.array:
        """Which of the rows that are held each new one sees, bool `[rows, held]`."""
        own = held - rows + mx.arange(rows)[:, None]
        keys = mx.arange(held)
        return (keys <= own) & (keys > own - self._window)


class HeavilyCompressedAttention(WindowAttention):
    """HCA: a row sees the entries of all closed windows as well."""

    def __init__(self, args: ModelArgs, ratio: int) -> None:
        super().__init__(args, ratio)
        self._ratio = ratio
        self.compressor = Compressor(args, ratio, args.head_dim)

    def make_cache(self) -> DeepseekV4Cache:
        """See `WindowAttention.make_cache`."""
        return DeepseekV4Cache(self._window, self._ratio)

    def _compressed(
        self, x: mx.array, low: mx.array, cache: DeepseekV4Cache
    ) -> tuple[mx.array | None, mx.array | None]:
        assert cache.compressed is not None
        self.compressor(x, cache.compressed, cache.offset, self.rotary)
        return cache.compressed.entries, None


class CompressedSparseAttention(HeavilyCompressedAttention):
    """CSA: of the closed windows' entries a row sees those that the indexer chooses."""

    def __init__(self, args: ModelArgs, ratio: int) -> None:
        super().__init__(args, ratio)
        self.indexer = Indexer(args, ratio)

    def make_cache(self) -> DeepseekV4Cache:
        """See `WindowAttention.make_cache`."""
        return DeepseekV4Cache(self._window, self._ratio, indexed=True)

    def _compressed(
        self, x: mx.array, low: mx.array, cache: DeepseekV4Cache
    ) -> tuple[mx.array | None, mx.array | None]:
        assert cache.index is not None
        entries, _ = super()._compressed(x, low, cache)
        return entries, self.indexer(x, low, cache.index, cache.offset, self.rotary)


def attention_of(args: ModelArgs, layer: int) -> WindowAttention:
    """A layer's attention, by its entry of `compress_ratios`."""
    ratio = args.compress_ratios[layer]
    if ratio == 0:
        return WindowAttention(args)
    kind = CompressedSparseAttention if ratio == OVERLAPPING else HeavilyCompressedAttention
    return kind(args, ratio)


def taken_rows(rows: mx.array, indices: mx.array) -> mx.array:
    """Rows `[batch, held, width]` at indices `[batch, n, k]`, `[batch, n, k, width]`; those at -1
    are anything."""
    batch, held, width = rows.shape
    places = mx.maximum(indices, 0) + mx.arange(batch)[:, None, None] * held
    return rows.reshape(batch * held, width)[places]
