"""The drafter of DSpine: a causal backbone with injections, and slots that are read out twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import mlx.core as mx

from ...checkpoint.base_config import CanonicalConfig
from ...checkpoint.linear import arrays_of
from ..base import SharedParts
from ..block import BlockBuilder
from ..context_cache import BatchContextCache, ContextCache
from ..dspark.backbone import Backbone, Ragged, Weights
from ..dspark.parallel import ParallelDrafter
from ..tensors import DrafterTensors
from ..vocabulary import Readout
from .config import DSpineConfig
from .injection import Injection


class DSpineDrafter(ParallelDrafter):
    """A DSpine drafter that uses its target's embedding and head, see `base.Drafter`.

    A slot's likeliest tokens come from its row h. Each of them then has the logit that the row
    gives when it hears from the token that was chosen before it: the state before the last
    injection, z, is injected anew. All other tokens have the logit -inf.

    Args:
        config: the canonical configuration.
        shared: see `SharedParts`.
        backbone: the parallel backbone.
        injection: what rows hear.
        norm: weight of the final norm, `[hidden]`.
    """

    CONFIG: ClassVar[type[CanonicalConfig]] = DSpineConfig

    def __init__(
        self,
        config: DSpineConfig,
        shared: SharedParts,
        backbone: Backbone,
        injection: Injection,
        norm: mx.array,
    ) -> None:
        super().__init__(config, shared, backbone)
        self._injection = injection
        self._final_norm = norm
        self._top_k = config.top_k

    @classmethod
    def load(cls, config: DSpineConfig, tensors: DrafterTensors, shared: SharedParts) -> Self:
        """See `DraftingMethod.load`."""
        weights = Weights.load(config, tensors)
        injection = Injection.load(config.num_layers, tensors)
        mx.eval(arrays_of([weights, injection]))
        backbone = Backbone(config, weights, tensors.dtype)
        return cls(config, shared, backbone, injection, weights.norm)

    def _block(
        self, caches: Sequence[ContextCache], anchor: mx.array, added: Sequence[mx.array] | None
    ) -> mx.array:
        """See `ParallelDrafter`; beside each row stands the state before the last injection."""
        heard = _Heard(self, anchor)
        rows = self._backbone.block(caches, self._embedded(anchor)[0], added, heard)
        return mx.concatenate([rows, heard.last[0]], axis=-1)

    def _blocks(
        self,
        caches: Sequence[BatchContextCache],
        anchors: mx.array,
        added: Sequence[mx.array] | None,
        ragged: Ragged,
    ) -> mx.array:
        """See `_block`."""
        heard = _Heard(self, anchors)
        rows = self._backbone.blocks(caches, self._embedded(anchors), added, ragged, heard)
        return mx.concatenate([rows, heard.last], axis=-1)

    def _read_out(self, hidden: mx.array) -> mx.array:
        """See `ParallelDrafter`; the rows, without the states beside them."""
        rows, _ = mx.split(hidden, 2, axis=-1)
        return rows

    def fill(
        self,
        block: BlockBuilder,
        readout: Readout,
        anchors: mx.array,
        base: mx.array,
        hidden: mx.array,
    ) -> None:
        """See `ParallelDrafter.fill`; beside each row stands its state before the injection."""
        _, states = mx.split(hidden, 2, axis=-1)
        size, last = base.shape[-1], self.config.num_layers - 1
        count = min(self._top_k, size)
        columns = mx.argpartition(base, kth=size - count, axis=-1)[..., size - count :]
        codes = self._injection.of_rows(last, states)
        absent, previous = mx.full((base.shape[0], size), -mx.inf), anchors
        for slot in range(base.shape[1]):
            before = self._injection.of_tokens(previous, states.dtype)
            heard = self._injection.after(last, states[:, slot], codes[:, slot], before)
            normed = mx.fast.rms_norm(heard, self._final_norm, self.config.rms_norm_eps)
            scores = readout.logits_of(columns[:, slot], normed).astype(mx.float32)
            previous = block.add(mx.put_along_axis(absent, columns[:, slot], scores, axis=-1))


class _Heard:
    """What a draft's rows hear after each layer; see `Backbone.block`.

    Args:
        drafter: gives the injection and the sizes.
        anchors: the token before each block, int `[n]`.

    Attributes:
        last: the rows before the last layer's injection, `[n, rows, hidden]`.
    """

    def __init__(self, drafter: DSpineDrafter, anchors: mx.array) -> None:
        self._injection, self._config = drafter._injection, drafter.config
        self._anchors = anchors
        self.last = anchors

    def __call__(self, layer: int, x: mx.array) -> mx.array:
        """Rows of all blocks `[n * rows, hidden]` after a layer, with what they heard."""
        blocks = x.reshape(self._anchors.size, self._config.block_size, -1)
        if layer == self._config.num_layers - 1:
            self.last = blocks
        first = self._injection.of_tokens(self._anchors, x.dtype)[:, None]
        return self._injection.along(layer, blocks, first).reshape(x.shape)
