"""A layer: attention and experts, each inside its hyper-connection."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from .attention import LatentAttention
from .config import ModelArgs
from .experts import Experts
from .hyper_connections import HyperConnection, expand, reduce


class Layer(nn.Module):
    """One layer of the target or stage of the head.

    Args:
        args: the checkpoint's sizes.
        attention: its attention.
        hashed: whether token ids route its experts.
    """

    def __init__(self, args: ModelArgs, attention: LatentAttention, hashed: bool = False) -> None:
        super().__init__()
        self.hc_attn = HyperConnection(args)
        self.attn_norm = nn.RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.attn = attention
        self.hc_ffn = HyperConnection(args)
        self.ffn_norm = nn.RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.ffn = Experts(args, hashed)

    def run(
        self,
        streams: mx.array,
        attend: Callable[[mx.array], mx.array],
        tokens: mx.array | None = None,
        into: mx.array | None = None,
    ) -> tuple[mx.array, mx.array]:
        """The copies behind the layer, `[batch, rows, copies, hidden]`, and V4.1's `into`.

        Args:
            streams: the copies before it.
            attend: maps the attention's normed input `[batch, rows, hidden]` to its output.
            tokens: token ids, int `[batch, rows]`; None where no layer is routed by them.
            into: weights of the copies in the row that attention reads, `[batch, rows, copies]`,
                which the sublayer before has made in V4.1. None for V4, whose sublayers make their
                own.
        """
        own, out, comb = self.hc_attn(streams)
        x = self.attn_norm(reduce(streams, own if into is None else into))
        streams = expand(attend(x), streams, out, comb)
        following, out, comb = self.hc_ffn(streams)
        x = self.ffn_norm(reduce(streams, following if into is None else own))
        return expand(self.ffn(x, tokens), streams, out, comb), following
