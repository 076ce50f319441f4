"""Attention whose keys and values are one latent row a position, shared by all heads."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.switch_layers import SwitchLinear

from .config import ModelArgs
from .rotary import Rotary


class LatentAttention(nn.Module):
    """Queries, latent rows and output of one layer; which rows are seen is its owner's business.

    Args:
        args: the checkpoint's sizes.
        ratio: the layer's compression, which its rotation depends on.
    """

    def __init__(self, args: ModelArgs, ratio: int = 0) -> None:
        super().__init__()
        hidden, width, heads = args.hidden_size, args.head_dim, args.num_attention_heads
        self._heads = heads
        self._groups = args.o_groups
        self._eps = args.rms_norm_eps
        self._query_norm = args.query_norm
        self._scale = width**-0.5
        self.wq_a = nn.Linear(hidden, args.q_lora_rank, bias=False)
        self.q_norm = nn.RMSNorm(args.q_lora_rank, args.rms_norm_eps)
        self.wq_b = nn.Linear(args.q_lora_rank, heads * width, bias=False)
        self.wkv = nn.Linear(hidden, width, bias=False)
        self.kv_norm = nn.RMSNorm(width, args.rms_norm_eps)
        self.wo_a = SwitchLinear(
            heads * width // args.o_groups, args.o_lora_rank, args.o_groups, bias=False
        )
        self.wo_b = nn.Linear(args.o_groups * args.o_lora_rank, hidden, bias=False)
        self.attn_sink = mx.zeros((heads,))
        self._group_ids = mx.arange(args.o_groups)
        self.rotary = Rotary.of_layer(args, ratio)

    def low_rank_queries(self, x: mx.array) -> mx.array:
        """What queries and indexer are made of: `[batch, rows, hidden]` to `[..., q_lora_rank]`."""
        return self.q_norm(self.wq_a(x))

    def queries(self, low: mx.array, offset: int) -> mx.array:
        """Rotated queries `[batch, heads, rows, width]` of `low_rank_queries`.

        Args:
            low: `[batch, rows, q_lora_rank]`.
            offset: position of the first row.
        """
        queries = self.wq_b(low).reshape(*low.shape[:2], self._heads, -1).swapaxes(1, 2)
        if self._query_norm:
            queries = mx.fast.rms_norm(queries, None, self._eps)
        return self.rotary(queries, offset)

    def rows(self, x: mx.array, offset: int) -> mx.array:
        """Rotated latent rows, `[batch, rows, hidden]` to `[batch, rows, width]`.

        Args:
            x: the layer's normed input.
            offset: position of the first row.
        """
        return self.rotary(self.kv_norm(self.wkv(x)), offset)

    def attend(self, queries: mx.array, seen: mx.array, mask: mx.array | None) -> mx.array:
        """Attention of all queries over the same rows.

        Args:
            queries: `[batch, heads, rows, width]`.
            seen: latent rows, `[batch, keys, width]`.
            mask: which of them a row sees, bool `[rows, keys]`; None for all.

        Returns:
            `[batch, heads, rows, width]`, of which the last channels are still rotated.
        """
        # In 16 bits MLX rounds the scores where heads are as wide as these.
        keys = seen[:, None].astype(mx.float32)
        attended = mx.fast.scaled_dot_product_attention(
            queries.astype(mx.float32),
            keys,
            keys,
            scale=self._scale,
            mask=mask,
            sinks=self.attn_sink.astype(mx.float32),
        )
        return attended.astype(queries.dtype)

    def attend_each(self, queries: mx.array, seen: mx.array, mask: mx.array) -> mx.array:
        """Attention of each query over rows of its own.

        Args:
            queries: `[batch, heads, rows, width]`.
            seen: each row's latent rows, `[batch, rows, keys, width]`.
            mask: which of them count, bool `[batch, rows, keys]`.

        Returns:
            See `attend`.
        """
        batch, heads, rows, width = queries.shape
        each = queries.swapaxes(1, 2).reshape(batch * rows, heads, 1, width)
        attended = self.attend(each, seen.flatten(0, 1), mask.flatten(0, 1)[:, None, None])
        return attended.reshape(batch, rows, heads, width).swapaxes(1, 2)

    def output(self, attended: mx.array, offset: int) -> mx.array:
        """The sublayer's output `[batch, rows, hidden]`.

        Args:
            attended: `[batch, heads, rows, width]`, which is rotated back here.
            offset: position of the first row.
        """
        batch, _, rows, _ = attended.shape
        straight = self.rotary(attended, offset, inverse=True)
        # Neighbouring heads are a group, which has a matrix of its own.
        groups = straight.reshape(batch, self._groups, -1, rows, straight.shape[-1])
        groups = groups.transpose(1, 0, 3, 2, 4).reshape(self._groups, batch * rows, -1)
        low = self.wo_a(groups, self._group_ids)
        return self.wo_b(low.swapaxes(0, 1).reshape(batch, rows, -1))
