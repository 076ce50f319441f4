"""What drafters of whole blocks share: the backbone's forward for one request and for several."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from ...sampling import Pick, greedy
from ...types import Draft
from ..base import DrafterContext, SharedParts
from ..batch import ContextBatch, Wanted
from ..block import BlockBuilder, EachPick
from ..context_cache import BatchContextCache, ContextCache, joined
from ..contexts import RequestContexts
from ..vocabulary import Readout
from .backbone import Backbone, Ragged
from .batch import DSparkBatch
from .config import BlockConfig


class ParallelDrafter(RequestContexts[BlockConfig]):
    """A drafter whose backbone reads a block at once, see `base.Drafter`.

    A method's drafter chooses the tokens of blocks from the backbone's rows: by `fill`, or by
    `choose` and `choose_each` where it has confidences.

    Args:
        config: the canonical configuration.
        shared: see `SharedParts`.
        backbone: the parallel backbone.
    """

    def __init__(self, config: BlockConfig, shared: SharedParts, backbone: Backbone) -> None:
        super().__init__(config, shared)
        self._backbone = backbone
        self._masks = mx.full((config.block_size - 1,), config.mask_token_id, dtype=mx.int32)
        mx.eval(self._masks)

    def choose(
        self,
        context: DrafterContext,
        hidden: mx.array,
        readout: Readout,
        anchor: mx.array,
        pick: Pick,
    ) -> Draft:
        """Choose a block's tokens.

        Args:
            context: the request's.
            hidden: the backbone's rows that give logits, `[gamma, hidden]`.
            readout: turns them into logits.
            anchor: the token before the block, int32 `[1]`.
            pick: chooses each slot's token.
        """
        base, block = readout.logits(self._read_out(hidden)), BlockBuilder(readout, pick)
        self.fill(block, readout, anchor, base[None], hidden[None])
        return block.draft(base)

    def choose_each(
        self, hidden: mx.array, readout: Readout, wanted: Sequence[Wanted], temperatures: mx.array
    ) -> list[Draft]:
        """The blocks of requests with one readout, see `batch.Choose`; `hidden` as `choose` has it.

        Args:
            hidden: `[requests, gamma, hidden]`.
            readout, wanted, temperatures: see `batch.Choose`.
        """
        picks = EachPick([each.pick or greedy for each in wanted])
        base, block = readout.logits(self._read_out(hidden)), BlockBuilder(readout, picks)
        anchors = mx.concatenate([each.anchor for each in wanted])
        self.fill(block, readout, anchors, base, hidden)
        return block.drafts(base, picks.weights)

    def fill(
        self,
        block: BlockBuilder,
        readout: Readout,
        anchors: mx.array,
        base: mx.array,
        hidden: mx.array,
    ) -> None:
        """Choose the tokens of n blocks from left to right.

        Args:
            block: takes the tokens.
            readout: says which token each column of the logits is.
            anchors: the token before each block, int32 `[n]`.
            base: the slots' logits, `[n, gamma, size]`.
            hidden: the backbone's rows of the slots, `[n, gamma, hidden]`.
        """
        raise NotImplementedError

    def _read_out(self, hidden: mx.array) -> mx.array:
        """The part of the backbone's rows that gives logits."""
        return hidden

    def _new_caches(self) -> list[ContextCache]:
        layers = range(self.config.num_layers)
        return [ContextCache(self.config.attention_of(i).window) for i in layers]

    def flush(self, context: DrafterContext) -> None:
        """See `Drafter.flush`."""
        rows = self._take_pending(context)
        if rows is not None:
            self._backbone.extend(context.caches, rows)

    def draft(self, context: DrafterContext, anchor: mx.array, pick: Pick) -> Draft:
        """See `Drafter.draft`."""
        rows = self._block(context.caches, anchor, self._take_pending(context))
        hidden = rows[self.config.logits_start :]
        return self.choose(context, hidden, self._output.readout(context.vocabulary), anchor, pick)

    def batch(self, contexts: Sequence[DrafterContext]) -> ContextBatch:
        """See `drafters.batch.BatchingDrafter`."""
        for context in contexts:
            self.flush(context)
        caches = joined([context.caches for context in contexts])
        return DSparkBatch(
            self._backbone, self._blocks, self._choose, self.flush, self._output, contexts, caches
        )

    def _block(
        self, caches: Sequence[ContextCache], anchor: mx.array, added: Sequence[mx.array] | None
    ) -> mx.array:
        """The rows of the block after an anchor, see `Backbone.block`."""
        x = self._embed(mx.concatenate([anchor, self._masks]))
        return self._backbone.block(caches, x, added)

    def _blocks(
        self,
        caches: Sequence[BatchContextCache],
        anchors: mx.array,
        added: Sequence[mx.array] | None,
        ragged: Ragged,
    ) -> mx.array:
        """The rows of the blocks after anchors, see `Backbone.blocks`."""
        return self._backbone.blocks(caches, self._embedded(anchors), added, ragged)

    def _choose(
        self, hidden: mx.array, readout: Readout, wanted: Sequence[Wanted], temperatures: mx.array
    ) -> list[Draft]:
        return self.choose_each(
            hidden[:, self.config.logits_start :], readout, wanted, temperatures
        )

    def _embedded(self, anchors: mx.array) -> mx.array:
        """The embeddings of blocks `[anchor, mask, mask, ...]`, `[requests, rows, hidden]`."""
        masks = mx.broadcast_to(self._masks, (anchors.size, self._masks.size))
        tokens = mx.concatenate([anchors[:, None], masks], axis=1)
        return self._embed(tokens.flatten()).reshape(*tokens.shape, -1)

    def _take_pending(self, context: DrafterContext) -> list[mx.array] | None:
        """K/V rows of the pending features, one array per layer; None when nothing is pending."""
        # The context is made of features alone; the tokens are for methods such as Eagle3.
        pending = context.take()
        return None if pending is None else self._backbone.context_rows(pending[0])
