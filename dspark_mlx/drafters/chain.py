"""What drafters that run once a token share: Eagle3's layer and a target's own prediction head.

A row joins the feature at position i with the token at i + 1, and predicts the token at i + 2. The
first token of a block comes from the newest feature and the anchor. For each later token, the
target's feature does not exist yet, so the output of the row before takes its place. A block's rows
are removed after the draft: the rows of committed tokens are written from the target's features.
"""

from __future__ import annotations

import mlx.core as mx

from ..calibration.by_temperature import Calibrations
from ..checkpoint.base_config import CanonicalConfig
from ..sampling import Pick
from ..types import Draft
from .base import DrafterContext, Embed, Pending
from .block import BlockBuilder
from .context_cache import ContextCache
from .contexts import RequestContexts
from .vocabulary import DraftOutput


class ChainDrafter(RequestContexts[CanonicalConfig]):
    """A drafter with one attention layer that runs once a token, see `base.Drafter`.

    The newest feature is joined with the anchor, which may not be known yet. So it stays pending in
    the context, and is in the cache only while a block is drafted. With one attention layer a
    committed row's K/V depends on its feature and token alone, and needs no attention.

    A method's drafter says what a row is: `_features`, `_write`, `_step` and `_readout_row`.

    Args:
        config: the canonical configuration.
        window: the newest rows that a row attends to; 0 for all.
        embed: token ids `[n]` to embeddings `[n, hidden]`, normally the target's table.
        output: turns hidden rows into logits.
        calibrations: expected acceptance, which some schedulers start from; there is no confidence
            to calibrate. None starts them from `calibration.sts.identity`.
    """

    def __init__(
        self,
        config: CanonicalConfig,
        window: int,
        embed: Embed,
        output: DraftOutput,
        calibrations: Calibrations | None = None,
    ) -> None:
        super().__init__(config, embed, output, calibrations)
        self._window = window

    def _new_caches(self) -> list[ContextCache]:
        return [ContextCache(self._window)]

    def _features(self, taps: mx.array) -> mx.array:
        """Features `[rows, hidden]` from concatenated taps `[rows, taps * target_hidden]`."""
        raise NotImplementedError

    def _write(self, cache: ContextCache, features: mx.array, tokens: mx.array) -> None:
        """Append committed rows to the cache; arguments as for `_step`."""
        raise NotImplementedError

    def _step(self, cache: ContextCache, features: mx.array, tokens: mx.array) -> mx.array:
        """Append rows to the cache and return the last row's output, `[1, hidden]`.

        Args:
            cache: K/V of all rows before.
            features: features, or the output of the row before, `[rows, hidden]`.
            tokens: the token after each feature, int `[rows]`.
        """
        raise NotImplementedError

    def _readout_row(self, state: mx.array) -> mx.array:
        """What the output matrix reads of a row's output, `[1, hidden]`."""
        raise NotImplementedError

    def _fed_back(self, state: mx.array, readout_row: mx.array) -> mx.array:
        """What takes the next feature's place: a row's output, or what is read out of it."""
        return state

    def flush(self, context: DrafterContext) -> None:
        """See `Drafter.flush`; the newest row stays pending, since its next token is not known."""
        pending = context.take()
        if pending is None:
            return
        features, tokens = pending
        if tokens.size > 1:
            self._write(context.caches[0], self._features(features[:-1]), tokens[1:])
            context.caches[0].drop_old()
        keep_newest(context, features, tokens)

    def draft(self, context: DrafterContext, anchor: mx.array, pick: Pick) -> Draft:
        """See `Drafter.draft`; the context must hold a committed token's feature."""
        pending = context.take()
        assert pending is not None, "a draft needs the features of a committed token"
        features, tokens = pending
        keep_newest(context, features, tokens)
        readout = self._output.readout(context.vocabulary)
        cache, gamma = context.caches[0], self.config.gamma
        cache.drop_old()
        state = self._step(cache, self._features(features), mx.concatenate([tokens[1:], anchor]))
        block = BlockBuilder(readout, pick)
        row = self._readout_row(state)
        block.add(readout.logits(row))
        for _ in range(1, gamma):
            state = self._step(cache, self._fed_back(state, row), block.tokens[-1])
            row = self._readout_row(state)
            block.add(readout.logits(row))
        # Removes the newest row and the gamma - 1 rows of the block after it.
        context.trim(gamma)
        return block.draft()


def keep_newest(context: DrafterContext, features: mx.array, tokens: mx.array) -> None:
    """Leave the newest of a context's rows pending."""
    # A copy: a view would keep the memory of all rows before it.
    newest, token = mx.contiguous(features[-1:]), mx.contiguous(tokens[-1:])
    context.pending = [Pending((newest,), token, 1)]
