"""The drafter of DSpark and DFlash: backbone, sequential head and confidence head make a Draft."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import mlx.core as mx

from ...calibration.by_temperature import Calibrations
from ...calibration.sts import identity
from ...checkpoint.base_config import CanonicalConfig
from ...checkpoint.linear import Matrix, alike, arrays_of
from ...sampling import Pick, greedy
from ...types import Draft
from ..base import DrafterContext, Embed
from ..batch import Wanted
from ..block import BlockBuilder, EachPick
from ..context_cache import ContextCache, joined
from ..heads import load_head
from ..heads.base import SequentialHead, correct
from ..heads.confidence import ConfidenceHead, load_confidence
from ..tensors import DrafterTensors
from ..vocabulary import DraftOutput, Readout
from .backbone import Backbone, Weights
from .batch import DSparkBatch
from .config import DSparkConfig


class DSparkDrafter:
    """A DSpark or DFlash drafter that uses its target's embedding and head, see `base.Drafter`.

    Args:
        config: the canonical configuration.
        backbone: the parallel backbone.
        confidence: the confidence head; None without one.
        embed: token ids `[n]` to embeddings `[n, hidden]`, normally the target's table.
        output: turns hidden rows into logits; holds the sequential head.
        calibrations: calibrations of the confidences; None leaves them uncalibrated.
    """

    CONFIG: ClassVar[type[CanonicalConfig]] = DSparkConfig

    def __init__(
        self,
        config: DSparkConfig,
        backbone: Backbone,
        confidence: ConfidenceHead | None,
        embed: Embed,
        output: DraftOutput,
        calibrations: Calibrations | None = None,
    ) -> None:
        self.config = config
        self._backbone = backbone
        self._confidence = confidence
        self._embed = embed
        self._output = output
        self.calibrations = calibrations or Calibrations({0.0: identity(config.gamma)})
        self._masks = mx.full((config.block_size - 1,), config.mask_token_id, dtype=mx.int32)
        mx.eval(self._masks)

    @classmethod
    def load(
        cls,
        config: DSparkConfig,
        tensors: DrafterTensors,
        embed: Embed,
        output: DraftOutput,
        calibrations: Calibrations | None = None,
    ) -> DSparkDrafter:
        """See `DraftingMethod.load`."""
        names = [f"layers.{i}" for i in range(config.num_layers)]
        qkv = [tensors.qkv(name) for name in names]
        if not alike(qkv):
            qkv = [part.dequantized(tensors.dtype) for part in qkv]
        weights = Weights(
            fc=tensors.matrix("fc"),
            context_norm=tensors.vector("hidden_norm.weight"),
            qkv=Matrix.stack(qkv),
            layers=tuple(tensors.layer(name) for name in names),
            norm=tensors.vector("norm.weight"),
        )
        confidence = load_confidence(config.confidence, tensors)
        head = load_head(config.head, tensors)
        mx.eval(arrays_of([weights, head, confidence]))
        backbone = Backbone(config, weights, tensors.dtype)
        return cls(config, backbone, confidence, embed, output.with_head(head), calibrations)

    @property
    def vocabulary_size(self) -> int:
        """See `Drafter.vocabulary_size`."""
        return self._output.size or self.config.output_size

    def new_context(self, prompt: Iterable[int] = (), temperature: float = 0.0) -> DrafterContext:
        """See `Drafter.new_context`."""
        layers = range(self.config.num_layers)
        caches = [ContextCache(self.config.attention_of(i).window) for i in layers]
        calibration = self.calibrations.at(temperature)
        temperatures = mx.array(calibration.temperatures)
        return DrafterContext(caches, temperatures, self._output.vocabulary(prompt))

    def extend(
        self,
        context: DrafterContext,
        taps: Sequence[mx.array],
        tokens: mx.array,
        rows: int | None = None,
    ) -> None:
        """See `Drafter.extend`."""
        context.add(taps, tokens, rows)

    def flush(self, context: DrafterContext) -> None:
        """See `Drafter.flush`."""
        rows = self._take_pending(context)
        if rows is not None:
            self._backbone.extend(context.caches, rows)

    def draft(self, context: DrafterContext, anchor: mx.array, pick: Pick) -> Draft:
        """See `Drafter.draft`."""
        hidden = self._block(context, anchor)[self.config.logits_start :]
        readout = self._output.readout(context.vocabulary)
        base, gamma = readout.logits(hidden), self.config.gamma
        block = BlockBuilder(readout, pick)
        rows = zip(mx.split(base, gamma), mx.split(hidden, gamma), strict=True)
        embeddings = _fill(block, readout.head, anchor, rows)
        if self._confidence is None:
            return block.draft(base)
        confidence_logits = self._confidence(
            hidden, mx.concatenate(embeddings) if embeddings else None
        )
        confidence = mx.sigmoid(confidence_logits / context.confidence_temperatures)
        return block.draft(base, confidence_logits, confidence)

    def batch(self, contexts: Sequence[DrafterContext]) -> DSparkBatch:
        """See `drafters.batch.BatchingDrafter`."""
        for context in contexts:
            self.flush(context)
        caches = joined([context.caches for context in contexts])
        return DSparkBatch(
            self._backbone, self._embedded, self._choose, self.flush, self._output, contexts, caches
        )

    def _choose(
        self, hidden: mx.array, readout: Readout, wanted: Sequence[Wanted], temperatures: mx.array
    ) -> list[Draft]:
        """The blocks of requests with one readout, see `batch.Choose`."""
        hidden = hidden[:, self.config.logits_start :]
        requests, gamma, width = hidden.shape
        flat = hidden.reshape(-1, width)
        base = readout.logits(flat).reshape(requests, gamma, -1)
        picks = EachPick([each.pick or greedy for each in wanted])
        block = BlockBuilder(readout, picks)
        rows = zip(base.swapaxes(0, 1), hidden.swapaxes(0, 1), strict=True)
        anchors = mx.concatenate([each.anchor for each in wanted])
        embeddings = _fill(block, readout.head, anchors, rows)
        if self._confidence is None:
            return block.drafts(base, picks.weights)
        previous = mx.stack(embeddings, axis=1).reshape(flat.shape[0], -1) if embeddings else None
        logits = self._confidence(flat, previous).reshape(requests, gamma)
        return block.drafts(base, picks.weights, logits, mx.sigmoid(logits / temperatures))

    def _embedded(self, anchors: mx.array) -> mx.array:
        """The embeddings of blocks `[anchor, mask, mask, ...]`, `[requests, rows, hidden]`."""
        masks = mx.broadcast_to(self._masks, (anchors.size, self._masks.size))
        tokens = mx.concatenate([anchors[:, None], masks], axis=1)
        return self._embed(tokens.flatten()).reshape(*tokens.shape, -1)

    def _block(self, context: DrafterContext, anchor: mx.array) -> mx.array:
        """The backbone's rows for [anchor, mask, mask, ...], `[block_size, hidden]`."""
        x = self._embed(mx.concatenate([anchor, self._masks]))
        return self._backbone.block(context.caches, x, self._take_pending(context))

    def _take_pending(self, context: DrafterContext) -> list[mx.array] | None:
        """K/V rows of the pending features, one array per layer; None when nothing is pending."""
        # The context is made of features alone; the tokens are for methods such as Eagle3.
        pending = context.take()
        return None if pending is None else self._backbone.context_rows(pending[0])


def _fill(
    block: BlockBuilder,
    head: SequentialHead | None,
    anchor: mx.array,
    rows: Iterable[tuple[mx.array, mx.array]],
) -> list[mx.array]:
    """Choose the tokens of n blocks slot by slot; returns the head's embeddings, `[n, rank]` each.

    Args:
        block: takes the tokens.
        head: corrects the logits; None without one.
        anchor: the token before each block, int `[n]`.
        rows: of each slot the base logits `[n, size]` and the backbone's rows `[n, hidden]`.
    """
    embeddings, previous, state = [], anchor, None
    for row, hidden_row in rows:
        if head is not None:
            row, embedding, state = correct(head, row, previous, hidden_row, state)
            embeddings.append(embedding)
        previous = block.add(row)
    return embeddings
