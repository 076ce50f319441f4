"""DeepSeek V4's caches: a window of latent rows, and windows of tokens that are compressed to one.

Every forward leaves its own rows in their raw form until the next one begins, so that the last of
them can be taken back by cutting arrays: what closed a window is still there, and entries of rows
that stay depend on rows that stay only.
"""

from __future__ import annotations

from typing import Any, ClassVar

import mlx.core as mx

from ..checkpoint.base_config import MAX_BLOCK

MOST_TAKEN_BACK = MAX_BLOCK + 1
"""Rows of the widest forward that is kept raw; rows of a wider one, of a prompt, always stay."""

_STEP = 256


class CompressedRows:
    """What one compressor has made: an entry for each closed window of `ratio` tokens.

    Args:
        ratio: tokens of a window.
        overlaps: whether a window's entry reads the window before it too.

    Attributes:
        first: the window that `values` and `scores` begin with.
        values, scores: raw rows `[batch, rows, width]` from that window's first token on.
        before: values and scores of the window before that; None where windows do not overlap, and
            before there is one.
    """

    def __init__(self, ratio: int, overlaps: bool) -> None:
        self.ratio = ratio
        self.overlaps = overlaps
        self.first = 0
        self.values: mx.array | None = None
        self.scores: mx.array | None = None
        self.before: tuple[mx.array, mx.array] | None = None
        self._entries: mx.array | None = None

    @property
    def count(self) -> int:
        """Number of closed windows."""
        return self.first + (0 if self.values is None else self.values.shape[1] // self.ratio)

    @property
    def entries(self) -> mx.array | None:
        """Entries of the closed windows, `[batch, count, width]`; None before the first."""
        return None if self._entries is None or not self.count else self._entries[:, : self.count]

    def append(self, values: mx.array, scores: mx.array) -> None:
        """Add a forward's raw rows; windows that were closed before cannot be opened any more."""
        self._forget_closed()
        if self.values is None or self.scores is None:
            self.values, self.scores = values, scores
        else:
            self.values = mx.concatenate([self.values, values], axis=1)
            self.scores = mx.concatenate([self.scores, scores], axis=1)

    def write(self, entries: mx.array) -> None:
        """Store the entries `[batch, new, width]` of the windows that the newest rows closed."""
        batch, new, width = entries.shape
        slots = -(-self.count // _STEP) * _STEP
        if self._entries is None:
            self._entries = mx.zeros((batch, slots, width), dtype=entries.dtype)
        elif self._entries.shape[1] < slots:
            more = slots - self._entries.shape[1]
            self._entries = mx.pad(self._entries, [(0, 0), (0, more), (0, 0)])
        self._entries[:, self.count - new : self.count] = entries

    def settle(self) -> None:
        """Let go of raw rows that only taking rows back would need."""
        self._forget_closed()
        if self.values is not None and self.scores is not None:
            # Copies: views would keep the memory of all rows.
            self.values, self.scores = mx.contiguous(self.values), mx.contiguous(self.scores)
        if self.before is not None:
            values, scores = self.before
            self.before = mx.contiguous(values), mx.contiguous(scores)

    def drop(self, rows: int) -> None:
        """Take the last rows of the newest forward out."""
        assert self.values is not None and self.scores is not None
        self.values, self.scores = self.values[:, :-rows], self.scores[:, :-rows]

    def arrays(self) -> list[mx.array]:
        """Every array that it holds."""
        found = [self.values, self.scores, self._entries, *(self.before or ())]
        return [array for array in found if array is not None]

    @property
    def bytes_per_token(self) -> int:
        """Bytes of an entry, a token's part of it."""
        return 0 if self._entries is None else self._entries[:, 0].nbytes // self.ratio

    def bytes_at(self, tokens: int, rows: int, itemsize: int) -> int:
        """Bytes at so many positions.

        Args:
            tokens: positions.
            rows: of the widest forward that stays raw.
            itemsize: bytes of a number of an entry.
        """
        assert self.values is not None and self.scores is not None
        raw = self.values[:, 0].nbytes + self.scores[:, 0].nbytes
        count = min(tokens, self.ratio - 1 + rows)
        if self.overlaps and tokens > self.ratio:
            count += self.ratio
        batch, _, width = self.values.shape
        entry = batch * width // (2 if self.overlaps else 1) * itemsize
        return count * raw + -(-(tokens // self.ratio) // _STEP) * _STEP * entry

    def _forget_closed(self) -> None:
        closed = self.count - self.first
        if not closed or self.values is None or self.scores is None:
            return
        start, end = (closed - 1) * self.ratio, closed * self.ratio
        if self.overlaps:
            self.before = self.values[:, start:end], self.scores[:, start:end]
        self.values, self.scores = self.values[:, end:], self.scores[:, end:]
        self.first += closed


class DeepseekV4Cache:
    """One layer's cache.

    Args:
        window_size: positions that a row sees uncompressed, its own included.
        ratio: tokens of a compressed window; 0 for a layer without.
        indexed: whether an indexer has keys of its own for these windows.

    Attributes:
        offset: position of the next row.
        window: the newest latent rows, `[batch, rows, width]`.
        compressed: entries; None for a layer without.
        index: the indexer's keys; None for a layer without.
    """

    def __init__(self, window_size: int, ratio: int = 0, indexed: bool = False) -> None:
        self.window_size = window_size
        self.offset = 0
        self._droppable = 0
        self.window: mx.array | None = None
        # Windows that are chosen among overlap.
        self.compressed = CompressedRows(ratio, overlaps=indexed) if ratio else None
        self.index = CompressedRows(ratio, overlaps=True) if indexed else None

    def update_window(self, rows: mx.array) -> mx.array:
        """Append a forward's latent rows; these and all that the first of them sees.

        Called last of a layer's updates: it moves the offset.
        """
        wide = rows.shape[1] > MOST_TAKEN_BACK
        seen = rows if self.window is None else mx.concatenate([self._newest(), rows], axis=1)
        self.window = seen
        self.offset += rows.shape[1]
        self._droppable = 0 if wide else rows.shape[1]
        if wide:
            self.window = mx.contiguous(self._newest())
            for part in self._parts():
                part.settle()
        return seen

    def drop(self, rows: int) -> None:
        """Take the last rows of the newest forward out."""
        assert self.window is not None and rows <= self._droppable
        self.window = self.window[:, :-rows]
        self._droppable -= rows
        self.offset -= rows
        for part in self._parts():
            part.drop(rows)

    def arrays(self) -> list[mx.array]:
        """Every array that the cache holds."""
        own = [] if self.window is None else [self.window]
        return own + [array for part in self._parts() for array in part.arrays()]

    @property
    def bytes_per_token(self) -> int:
        """Bytes that each further position takes."""
        return sum(part.bytes_per_token for part in self._parts())

    def bytes_at(self, tokens: int, rows: int) -> int:
        """Bytes at so many positions, see `CacheKind.bytes_at`."""
        assert self.window is not None
        rows = rows if rows <= MOST_TAKEN_BACK else 0
        own = self.window[:, 0].nbytes * min(tokens, self.window_size - 1 + rows)
        size = self.window.dtype.size
        return own + sum(part.bytes_at(tokens, rows, size) for part in self._parts())

    def _newest(self) -> mx.array:
        """The rows that the next one sees."""
        assert self.window is not None
        return self.window[:, max(self.window.shape[1] - self.window_size + 1, 0) :]

    def _parts(self) -> list[CompressedRows]:
        return [part for part in (self.compressed, self.index) if part is not None]


class CompressedCache:
    """One layer's window and compressed entries; rows are taken back by cutting arrays."""

    CACHE: ClassVar[type] = DeepseekV4Cache
    RECURRENT: ClassVar[bool] = False
    NEWEST_ONLY: ClassVar[bool] = True
    UNREAD: ClassVar[bool] = True

    @staticmethod
    def snapshot(cache: Any) -> None:
        """See `CacheKind.snapshot`."""

    @staticmethod
    def drop(cache: Any, rows: int, before: Any) -> None:
        """See `CacheKind.drop`."""
        cache.drop(rows)
        # The next round may be computed by another thread.
        mx.async_eval(cache.arrays())

    @staticmethod
    def bytes_per_token(cache: Any) -> int:
        """See `CacheKind.bytes_per_token`."""
        return int(cache.bytes_per_token)

    @staticmethod
    def bytes_at(cache: Any, tokens: int, rows: int) -> int:
        """See `CacheKind.bytes_at`."""
        return int(cache.bytes_at(tokens, rows))

    @staticmethod
    def arrays(cache: Any) -> list[mx.array]:
        """See `CacheKind.arrays`."""
        return list(cache.arrays())
