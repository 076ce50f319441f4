"""A stage's latent rows of the newest committed positions."""

from __future__ import annotations

import mlx.core as mx

_SLACK = 16


class LatentRing:
    """The rows that every block sees; they enter when they are verified.

    Args:
        window: how many rows a block sees at most. A few older ones are held, so that the newest
            can be taken out.

    Attributes:
        window: see above.
        offset: position of the next row.
        keys: the rows, `[1, held, width]`, oldest first; None before the first.
        values: None: a latent row is key and value.
    """

    values = None

    def __init__(self, window: int) -> None:
        self.window = window
        self.offset = 0
        self.keys: mx.array | None = None

    def append(self, rows: mx.array, skipped: int) -> None:
        """Add the newest rows.

        Args:
            rows: `[1, rows, width]`, no more than the window.
            skipped: how many positions before them have no row, since the window has left them.
        """
        self.offset += skipped + rows.shape[1]
        if self.keys is not None and not skipped:
            rows = mx.concatenate([self.keys, rows], axis=1)
        self.keys = rows[:, max(rows.shape[1] - self.window - _SLACK, 0) :]

    def trim(self, rows: int) -> None:
        """Take the last rows out, 16 at most."""
        assert self.keys is not None and rows <= _SLACK
        self.keys = self.keys[:, :-rows]
        self.offset -= rows

    def bytes_at(self, tokens: int, rows: int) -> int:
        """Bytes that it takes at so many positions; arguments as `CacheKind.bytes_at`."""
        assert self.keys is not None
        return self.keys[:, 0].nbytes * min(tokens, self.window + _SLACK)

    @property
    def newest(self) -> mx.array | None:
        """The rows that a block sees, `[1, rows, width]`; None before the first."""
        return None if self.keys is None else self.keys[:, -self.window :]

    def seen(self, block: mx.array) -> mx.array:
        """The rows that a block sees and then its own; the ring stays as it is."""
        newest = self.newest
        return block if newest is None else mx.concatenate([newest, block], axis=1)
