"""Compressed rows: a window of tokens pooled to one entry, and the indexer that chooses entries.

A row at position t sees the entries of all windows whose last token is t or older.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ...caches.deepseek_v4 import CompressedRows
from ...deepseek_v4.config import OVERLAPPING, ModelArgs
from ...deepseek_v4.rotary import Rotary

# Scores of the indexer's heads that are held at once: 256 MB in float32.
_MOST_SCORES = 1 << 26


class Compressor(nn.Module):
    """Pools each window's tokens, weighted channel by channel by a softmax over them.

    With overlap, a token has two halves of channels: the second counts in its own window, the first
    in the next one.

    Args:
        args: the checkpoint's sizes.
        ratio: tokens of a window.
        width: channels of an entry.
    """

    def __init__(self, args: ModelArgs, ratio: int, width: int) -> None:
        super().__init__()
        self._ratio = ratio
        self._width = width
        channels = width * (2 if ratio == OVERLAPPING else 1)
        self.wkv = nn.Linear(args.hidden_size, channels, bias=False)
        self.wgate = nn.Linear(args.hidden_size, channels, bias=False)
        self.ape = mx.zeros((ratio, channels))
        self.norm = nn.RMSNorm(width, args.rms_norm_eps)

    def __call__(self, x: mx.array, rows: CompressedRows, offset: int, rotary: Rotary) -> None:
        """Add a forward's tokens to `rows`, and the entries of the windows that they close.

        Args:
            x: the layer's normed input, `[batch, rows, hidden]`.
            rows: changed in place.
            offset: position of the first token.
            rotary: rotates an entry by the position of its window's first token.
        """
        exact = x.astype(mx.float32)
        places = (offset + mx.arange(x.shape[1])) % self._ratio
        open_count = rows.count
        rows.append(self.wkv(exact), self.wgate(exact) + self.ape[places])
        closed = rows.count - open_count
        if closed:
            pooled = self.norm(self._pooled(rows, closed)).astype(x.dtype)
            rows.write(rotary(pooled, open_count, stride=self._ratio))

    def _pooled(self, rows: CompressedRows, closed: int) -> mx.array:
        """Weighted sums of the newly closed windows, float32 `[batch, closed, width]`."""
        assert rows.values is not None and rows.scores is not None
        count = closed * self._ratio
        values, scores = rows.values[:, :count], rows.scores[:, :count]
        if self._ratio == OVERLAPPING:
            before = rows.before or (
                mx.zeros_like(values[:, : self._ratio]),
                mx.full(scores[:, : self._ratio].shape, -mx.inf, scores.dtype),
            )
            values, scores = (
                self._overlapping(mx.concatenate([old, new], axis=1))
                for old, new in zip(before, (values, scores), strict=True)
            )
        else:
            values, scores = (mx.unflatten(a, 1, (closed, -1)) for a in (values, scores))
        return (mx.softmax(scores, axis=2) * values).sum(axis=2)

    def _overlapping(self, rows: mx.array) -> mx.array:
        """Rows from the window before on, as `[batch, windows, 2 * ratio, width]`."""
        windows = mx.unflatten(rows, 1, (-1, self._ratio))
        first, second = windows[..., : self._width], windows[..., self._width :]
        return mx.concatenate([first[:, :-1], second[:, 1:]], axis=2)


class Indexer(nn.Module):
    """Chooses the entries that a row sees, by keys of its own."""

    def __init__(self, args: ModelArgs, ratio: int) -> None:
        super().__init__()
        heads, width = args.index_n_heads, args.index_head_dim
        self._heads = heads
        self._ratio = ratio
        self._chosen = args.index_topk
        self._scale = (heads * width) ** -0.5
        self.wq_b = nn.Linear(args.q_lora_rank, heads * width, bias=False)
        self.weights_proj = nn.Linear(args.hidden_size, heads, bias=False)
        self.compressor = Compressor(args, ratio, width)

    def __call__(
        self, x: mx.array, low: mx.array, rows: CompressedRows, offset: int, rotary: Rotary
    ) -> mx.array | None:
        """The entries that each row sees, int32 `[batch, rows, index_topk]`, -1 for none.

        None where each row sees all entries of its windows, since there are no more.

        Args:
            x: the layer's normed input, `[batch, rows, hidden]`.
            low: its queries' low-rank form, `[batch, rows, q_lora_rank]`.
            rows: the keys, to which those of this forward are added.
            offset: position of the first row.
            rotary: the layer's.
        """
        self.compressor(x, rows, offset, rotary)
        if rows.entries is None or rows.count <= self._chosen:
            return None
        rows_at_once = max(_MOST_SCORES // (self._heads * rows.count * x.shape[0]), 1)
        parts = []
        for start in range(0, x.shape[1], rows_at_once):
            part = slice(start, start + rows_at_once)
            scores = self.scores(x[:, part], low[:, part], rows.entries, offset + start, rotary)
            parts.append(self._best(scores, offset + start))
        return mx.concatenate(parts, axis=1)

    def scores(
        self, x: mx.array, low: mx.array, keys: mx.array, offset: int, rotary: Rotary
    ) -> mx.array:
        """Scores of all entries, seen or not, float32 `[batch, rows, entries]`."""
        queries = mx.unflatten(self.wq_b(low), -1, (self._heads, -1)).swapaxes(1, 2)
        queries = rotary(queries, offset).astype(mx.float32)
        matches = mx.maximum(queries @ keys[:, None].astype(mx.float32).swapaxes(-1, -2), 0)
        weights = self.weights_proj(x).astype(mx.float32).swapaxes(-1, -2)[..., None]
        return (matches * weights).sum(axis=1) * self._scale

    def _best(self, scores: mx.array, offset: int) -> mx.array:
        visible = visible_entries(scores.shape[-1], scores.shape[1], offset, self._ratio)
        ranked = mx.where(visible, -scores, mx.inf)
        chosen = mx.argpartition(ranked, self._chosen - 1, axis=-1)[..., : self._chosen]
        seen = mx.take_along_axis(ranked, chosen, axis=-1) < mx.inf
        return mx.where(seen, chosen.astype(mx.int32), -1)


def visible_entries(entries: int, rows: int, offset: int, ratio: int) -> mx.array:
    """Which entries each row sees by its position alone, bool `[rows, entries]`."""
    closed = (offset + mx.arange(rows) + 1) // ratio
    return mx.arange(entries) < closed[:, None]
