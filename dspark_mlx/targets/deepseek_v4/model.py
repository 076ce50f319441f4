"""The model, with the members that mlx-lm's models have, so that its loader builds it."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn

from ...caches.deepseek_v4 import DeepseekV4Cache
from ...deepseek_v4.config import ModelArgs
from ...deepseek_v4.hyper_connections import FinalReduction, copies_of
from ...deepseek_v4.layer import Layer
from ...deepseek_v4.weights import loadable
from .attention import WindowAttention, attention_of


class TargetLayer(Layer):
    """A layer of the target.

    Args:
        args: the checkpoint's sizes.
        index: its place among the layers.
    """

    attn: WindowAttention

    def __init__(self, args: ModelArgs, index: int) -> None:
        super().__init__(args, attention_of(args, index), hashed=index < args.num_hash_layers)

    def __call__(self, streams: mx.array, cache: DeepseekV4Cache, tokens: mx.array) -> mx.array:
        """The copies behind the layer; see `Layer.run`."""
        behind, _ = self.run(streams, lambda x: self.attn(x, cache), tokens)
        return behind


class Model(nn.Module):
    """DeepSeek V4 without its head's stages."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        self.embed = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [TargetLayer(args, i) for i in range(args.num_hidden_layers)]
        self.hc_head = FinalReduction(args)
        self.norm = nn.RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.lm_head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)

    def __call__(self, inputs: mx.array, cache: list[DeepseekV4Cache] | None = None) -> mx.array:
        """Logits `[batch, rows, vocabulary]` of token ids, int `[batch, rows]`."""
        caches = cache or self.make_cache()
        streams = copies_of(self.embed(inputs), self.args.hc_mult)
        for layer, own in zip(self.layers, caches, strict=True):
            streams = layer(streams, own, inputs)
        return self.lm_head(self.norm(self.hc_head(streams)))

    def make_cache(self) -> list[DeepseekV4Cache]:
        """Empty caches for a request, one a layer."""
        return [layer.attn.make_cache() for layer in self.layers]

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The released checkpoint's tensors as this model names and holds them."""
        own = {name: w for name, w in weights.items() if not name.startswith("mtp.")}
        return loadable(own, self.args)
