"""The drafter made of a Gemma 4 assistant, see `Gemma4AssistantConfig`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import mlx.core as mx
import mlx.nn as nn

from ...checkpoint.base_config import CanonicalConfig
from ...checkpoint.linear import Matrix, arrays_of
from ...errors import InputError
from ...sampling import Pick
from ...types import Draft
from ..base import DrafterContext, SharedParts
from ..block import BlockBuilder
from ..context_cache import ContextCache
from ..contexts import RequestContexts
from ..mtp.rows import load_layers
from ..tensors import DrafterTensors, TargetLayers
from .clusters import ClusteredOutput
from .config import CENTROIDS, FULL, POST, SLIDING, TOKEN_ORDERING, Gemma4AssistantConfig


@dataclass
class AssistantContext(DrafterContext):
    """See `DrafterContext`; `caches` hold keys and values of two layers of the target.

    Attributes:
        state: the target's state at the newest position, `[1, target_hidden]`; None before one.
    """

    state: mx.array | None = None

    def arrays(self) -> list[mx.array]:
        """See `DrafterContext.arrays`."""
        return super().arrays() + ([] if self.state is None else [self.state])


class Gemma4AssistantDrafter(RequestContexts[Gemma4AssistantConfig]):
    """A Gemma 4 assistant, see `base.Drafter`.

    The target's keys and values are made again, by the target's own layers, of the taps that enter
    these layers. So a context is cut back, joined and kept as every drafter's is, whatever becomes
    of the target's caches: those rotate, or are quantised.

    Args:
        config: the canonical configuration.
        shared: see `SharedParts`.
        fc: projection of an embedding beside a state, `[hidden, 2 * target_hidden]`.
        post: projection of a row to a state, `[target_hidden, hidden]`.
        norm: weight of the final norm, `[hidden]`.
        layers: the assistant's layers, loaded.
        clusters: gives the logits of a few clusters' tokens; None where those of all are read out.
        target: makes keys and values, and norms states.
        dtype: type of the arithmetic.
    """

    CONFIG: ClassVar[type[CanonicalConfig]] = Gemma4AssistantConfig
    CONTEXT: ClassVar[type[DrafterContext]] = AssistantContext

    def __init__(
        self,
        config: Gemma4AssistantConfig,
        shared: SharedParts,
        fc: Matrix,
        post: Matrix,
        norm: mx.array,
        layers: Sequence[nn.Module],
        clusters: ClusteredOutput | None,
        target: TargetLayers,
        dtype: mx.Dtype,
    ) -> None:
        super().__init__(config, shared)
        self._fc, self._post, self._norm = fc, post, norm
        self._layers = layers
        self._clusters = clusters
        self._target = target
        self._dtype = dtype

    @classmethod
    def load(
        cls, config: Gemma4AssistantConfig, tensors: DrafterTensors, shared: SharedParts
    ) -> Self:
        """See `DraftingMethod.load`.

        Raises:
            InputError: the target's last keys and values are of other layers, or are not such as
                the assistant reads; or it has no final norm that is known.
        """
        assert tensors.target is not None, "an assistant reads its target's layers"
        _check_target(config, tensors.target)
        fc, post, norm = tensors.matrix("fc"), tensors.matrix(POST), tensors.vector("norm.weight")
        layers = load_layers(config.layers(), config, tensors)
        clusters = _clusters(config, tensors, shared) if config.num_centroids else None
        mx.eval(arrays_of([fc, post, norm, clusters]), [layer.parameters() for layer in layers])
        target, dtype = tensors.target, tensors.dtype
        return cls(config, shared, fc, post, norm, layers, clusters, target, dtype)

    def _new_caches(self) -> list[ContextCache]:
        return [ContextCache(), ContextCache(self.config.window)]

    def flush(self, context: DrafterContext) -> None:
        """See `Drafter.flush`."""
        assert isinstance(context, AssistantContext)
        pending = context.take()
        if pending is None:
            return
        taps = mx.split(pending[0], len(self.config.taps), axis=-1)
        for cache, layer in zip(context.caches, _read_layers(self.config), strict=True):
            entering = taps[self.config.taps.index(layer - 1)]
            keys, values = self._target.key_values(layer, entering, cache.offset)
            cache.update_and_fetch(keys.astype(self._dtype), values.astype(self._dtype))
            cache.drop_old()
        # A copy: a view would keep the memory of all rows before it.
        context.state = mx.contiguous(taps[-1][-1:])

    def draft(self, context: DrafterContext, anchor: mx.array, pick: Pick) -> Draft:
        """See `Drafter.draft`; the context must hold a committed token's feature."""
        self.flush(context)
        assert isinstance(context, AssistantContext)
        state, position, token = context.state, context.length, anchor
        assert state is not None, "a draft needs the features of a committed token"
        if self.config.state == "normed":
            state = self._target.final_norm(state)
        full, sliding = (cache.held.keys_and_values() for cache in context.caches)
        newest = [array[..., -self.config.window :, :] for array in sliding]
        attended = {FULL: full, SLIDING: newest}
        readout = self._output.readout(context.vocabulary)
        block = BlockBuilder(readout, pick)
        for _ in range(self.config.steps):
            row = self._row(token, state, attended, position)
            if self._clusters is not None:
                token = block.add(*self._clusters(row))
            else:
                token = block.add(readout.logits(row))
            state = self._post(row)
        return block.draft()

    def _row(
        self,
        token: mx.array,
        state: mx.array,
        attended: dict[str, Sequence[mx.array]],
        position: int,
    ) -> mx.array:
        """A step's row after the final norm, `[1, hidden]`.

        Args:
            token: the token before it, int `[1]`.
            state: g, `[1, target_hidden]`.
            attended: keys and values by the kind of the layer, `[1, heads, positions, size]`.
            position: the anchor's.
        """
        embedded = self._embed(token).astype(self._dtype) * self.config.embedding_scale
        x = self._fc(mx.concatenate([embedded, state.astype(self._dtype)], axis=-1))[None]
        for layer in self._layers:
            kv = tuple(attended[layer.layer_type])
            x, *_ = layer(x, None, None, shared_kv=kv, offset=position)
        return mx.fast.rms_norm(x[0], self._norm, self.config.rms_norm_eps)


def _read_layers(config: Gemma4AssistantConfig) -> tuple[int, int]:
    """The target's layers whose keys and values the context's two caches hold."""
    return config.full_layer, config.sliding_layer


def _clusters(
    config: Gemma4AssistantConfig, tensors: DrafterTensors, shared: SharedParts
) -> ClusteredOutput:
    table = shared.output.full.matrix
    assert table is not None, "an output of its own, not scaled, is a matrix"
    tokens = tensors.tensors[TOKEN_ORDERING].reshape(config.num_centroids, -1)
    return ClusteredOutput(tensors.matrix(CENTROIDS), tokens, table, config.centroid_top_k)


def _check_target(config: Gemma4AssistantConfig, target: TargetLayers) -> None:
    """Refuse a target whose keys the assistant's queries do not fit, or without a norm that it
    needs, see `load`."""
    where, read = f"the target of {config.summary}", sorted(_read_layers(config))
    made = [layer for layer in range(target.num_layers) if target.makes_keys(layer)]
    if not set(read) <= set(made) or made[-1] != read[-1]:
        expected = f"those of its last layers that make keys, {made[-2:]}"
        hint = "Convert the assistant with this target's --target-layers and --kv-shared-layers."
        raise InputError(where, f"keys of its layers {read} read", expected, hint)
    row = mx.zeros((1, config.target_hidden_size))
    if config.state == "normed":
        target.final_norm(row)
    by_kind = dict(zip((FULL, SLIDING), _read_layers(config), strict=True))
    for layer in config.layers():
        index, attention = by_kind[layer.layer_type], layer.self_attn
        keys, _ = target.key_values(index, row, 0)
        if keys.shape[-1] != attention.head_dim or attention.n_heads % keys.shape[1]:
            found = f"{keys.shape[1]} keys of {keys.shape[-1]} columns in its layer {index}"
            expected = f"{attention.head_dim} columns, and heads that divide {attention.n_heads}"
            raise InputError(where, found, expected)
