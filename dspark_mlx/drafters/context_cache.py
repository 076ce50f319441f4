"""A drafter layer's keys and values of the committed positions: of all, or of the newest."""

from __future__ import annotations

import mlx.core as mx
from mlx_lm.models.cache import KVCache

_SLACK = 256


class ContextCache:
    """Keys and values of one layer's context, with the interface of mlx-lm's KVCache.

    Args:
        window: how many positions before the anchor the layer attends to at most; 0 for all. Older
            ones are dropped, many at a time, so that at most twice as many are held, or 256 more
            where the window is shorter than that.

    Attributes:
        start: position of the first row that is held.
        held: the rows.
    """

    def __init__(self, window: int = 0) -> None:
        self.window = window
        self.start = 0
        self.held = KVCache()

    @property
    def offset(self) -> int:
        """Position of the next row."""
        return self.start + int(self.held.offset)

    @property
    def keys(self) -> mx.array | None:
        """Keys that are held, with room behind them; None before the first."""
        return self.held.keys

    @property
    def values(self) -> mx.array | None:
        """See `keys`."""
        return self.held.values

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append rows; all keys and values from `start` on."""
        keys, values = self.held.update_and_fetch(keys, values)
        return keys, values

    def trim(self, rows: int) -> None:
        """Take the last rows out."""
        self.held.trim(rows)

    def drop_old(self) -> None:
        """Drop what the window has left behind; to be called where all rows are committed."""
        old = self.held.offset - self.window
        if not self.window or old <= max(self.window, _SLACK):
            return
        keys, values = self.held.keys_and_values()
        newest = KVCache()
        # Copies: views would keep the memory of the rows before them.
        newest.keys, newest.values = (mx.contiguous(a[..., old:, :]) for a in (keys, values))
        newest.offset = self.window
        self.held = newest
        self.start += old
