"""A stage's latent rows of the newest committed positions."""

from __future__ import annotations

import mlx.core as mx


class LatentRing:
    """The rows that every block sees; rows enter when they are verified, and none is taken back.

    Args:
        window: how many rows are held at most.

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
        self.keys = rows[:, max(rows.shape[1] - self.window, 0) :]

    def seen(self, block: mx.array) -> mx.array:
        """The ring's rows and then a block's, `[1, rows, width]`; the ring stays as it is."""
        return block if self.keys is None else mx.concatenate([self.keys, block], axis=1)
