"""The head's stages: layers of the target's own kind over a ring of latent rows and a block."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ...checkpoint.precision import apply_precision
from ...deepseek_v4.attention import LatentAttention
from ...deepseek_v4.config import ModelArgs
from ...deepseek_v4.hyper_connections import FinalReduction, copies_of, reduce
from ...deepseek_v4.layer import Layer
from ...deepseek_v4.weights import loadable
from ..tensors import DrafterTensors
from .ring import LatentRing


class Stages(nn.Module):
    """The backbone of the head.

    Args:
        args: sizes; `num_hidden_layers` is the number of stages.
    """

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self._args = args
        self.layers = [Layer(args, LatentAttention(args)) for _ in range(args.num_hidden_layers)]
        if not args.late_mixing:
            self.hc_head = FinalReduction(args)

    @classmethod
    def of(cls, args: ModelArgs, tensors: DrafterTensors) -> Self:
        """The stages with a folder's tensors, in the types of `DrafterTensors`."""
        stages = cls(args)
        stages.load(loadable(tensors.taken(("layers.", "hc_head.")), args))
        apply_precision(stages, tensors.dtype if tensors.dequantize else None)
        for _, array in tree_flatten(stages.parameters()):
            mx.eval(array)
        return stages

    def load(self, weights: dict[str, mx.array]) -> None:
        """Take weights as `deepseek_v4.weights.loadable` gives them; packed ones stay packed.

        Raises:
            ValueError: there is one too few or too many, or it has another shape.
        """

        def packing(path: str, module: nn.Module) -> bool | dict[str, Any]:
            scales = weights.get(f"{path}.scales")
            if scales is None or not hasattr(module, "to_quantized"):
                return False
            columns = module.weight.shape[-1]
            bits = weights[f"{path}.weight"].shape[-1] * 32 // columns
            mode = "affine" if scales.dtype != mx.uint8 else f"mxfp{bits}"
            return {"group_size": columns // scales.shape[-1], "bits": bits, "mode": mode}

        nn.quantize(self, class_predicate=packing)
        self.load_weights(list(weights.items()), strict=True)
        self.eval()

    def extend(self, rings: Sequence[LatentRing], rows: mx.array, skipped: int) -> None:
        """Append committed rows to each stage's ring.

        Args:
            rings: one a stage, changed in place.
            rows: the normed projections of the newest features, `[rows, hidden]`.
            skipped: see `LatentRing.append`.
        """
        for layer, ring in zip(self.layers, rings, strict=True):
            ring.append(layer.attn.rows(rows[None], ring.offset + skipped), skipped)

    def block(self, rings: Sequence[LatentRing], x: mx.array) -> mx.array:
        """A block's rows reduced to one stream, `[rows, hidden]`, before the final norm.

        Every row sees the whole ring and the whole block.

        Args:
            rings: one a stage, which stay as they are.
            x: the block's embeddings, `[rows, hidden]`.
        """
        copies, late = self._args.hc_mult, self._args.late_mixing
        streams = copies_of(x[None], copies)
        # All copies are equal at first, so that the first one alone is read.
        into = mx.broadcast_to(mx.arange(copies) == 0, streams.shape[:3]) if late else None
        for layer, ring in zip(self.layers, rings, strict=True):
            attend = partial(_attend, layer.attn, ring)
            streams, following = layer.run(streams, attend, into=into)
            into = following if late else None
        reduced: mx.array = self.hc_head(streams) if into is None else reduce(streams, into)
        return reduced.squeeze(0)


def _attend(attention: LatentAttention, ring: LatentRing, x: mx.array) -> mx.array:
    start = ring.offset
    queries = attention.queries(attention.low_rank_queries(x), start)
    attended = attention.attend(queries, ring.seen(attention.rows(x, start)), None)
    return attention.output(attended, start)
