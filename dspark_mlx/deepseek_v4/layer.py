"""A layer: attention and experts, each inside its hyper-connection."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from .attention import LatentAttention
from .config import ModelArgs
from .experts import Experts
from .hyper_connections import HyperConnection, expand


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
    ) -> mx.array:
        """The copies behind the layer, `[batch, rows, copies, hidden]`.

        Args:
            streams: the copies before it.
            attend: maps the attention's normed input `[batch, rows, hidden]` to its output.
            tokens: token ids, int `[batch, rows]`; None where no layer is routed by them.
        """
        x, weights, comb = self.hc_attn(streams)
        streams = expand(attend(self.attn_norm(x)), streams, weights, comb)
        x, weights, comb = self.hc_ffn(streams)
        return expand(self.ffn(self.ffn_norm(x), tokens), streams, weights, comb)
