"""What drafters that run once a token share: Eagle3's layer and a target's own prediction head.

A row joins the feature at position i with the token at i + 1, and predicts the token at i + 2. The
first token of a block comes from the newest feature and the anchor. For each later token, the
target's feature does not exist yet, so the output of the row before takes its place. A block's rows
are removed after the draft: the rows of committed tokens are written from the target's features.
"""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx

from ..checkpoint.base_config import CanonicalConfig
from ..sampling import Pick
from ..types import Draft
from .base import DrafterContext, Pending, SharedParts
from .block import BlockBuilder
from .context_cache import ContextCache, TextCache
from .contexts import RequestContexts


class ChainRows(Protocol):
    """The arithmetic of a method's rows; its weights need not be evaluated."""

    def features(self, taps: mx.array) -> mx.array:
        """Features `[..., rows, hidden]` from concatenated taps `[..., rows, taps * hidden]`."""
        ...

    def write(self, cache: ContextCache, features: mx.array, tokens: mx.array) -> None:
        """Append committed rows to the cache; arguments as for `newest`."""
        ...

    def newest(self, cache: ContextCache, features: mx.array, tokens: mx.array) -> mx.array:
        """Append rows to the cache and return the last row's output, `[1, hidden]`.

        Args:
            cache: K/V of all rows before.
            features: features, or what was fed back of the row before, `[rows, hidden]`.
            tokens: the token after each feature, int `[rows]`.
        """
        ...

    def readout_row(self, state: mx.array) -> mx.array:
        """What the output matrix reads of rows' outputs, both `[..., hidden]`."""
        ...

    def fed_back(self, state: mx.array, readout_row: mx.array) -> mx.array:
        """What takes the next feature's place: a row's output, or what is read out of it."""
        ...


class TextRows(ChainRows, Protocol):
    """Rows that can be computed for whole texts, as training needs them."""

    def outputs(
        self, cache: TextCache, features: mx.array, tokens: mx.array, mask: mx.array
    ) -> mx.array:
        """Append a step of whole texts to the cache; all rows' outputs, `[texts, length, hidden]`.

        Args:
            cache: K/V of the steps before.
            features: features, or what was fed back, `[texts, length, hidden]`.
            tokens: the token after each feature, int `[texts, length]`.
            mask: what each row attends to, bool `[length, steps * length]`.
        """
        ...


class ChainDrafter(RequestContexts[CanonicalConfig]):
    """A drafter with one attention layer that runs once a token, see `base.Drafter`.

    The newest feature is joined with the anchor, which may not be known yet. So it stays pending in
    the context, and is in the cache only while a block is drafted. With one attention layer a
    committed row's K/V depends on its feature and token alone, and needs no attention.

    Args:
        config: the canonical configuration.
        shared: see `SharedParts`.
        window: the newest rows that a row attends to; 0 for all.
        rows: what the method's rows are.
    """

    def __init__(
        self, config: CanonicalConfig, shared: SharedParts, window: int, rows: ChainRows
    ) -> None:
        super().__init__(config, shared)
        self._window = window
        self._rows = rows

    def _new_caches(self) -> list[ContextCache]:
        return [ContextCache(self._window)]

    def flush(self, context: DrafterContext) -> None:
        """See `Drafter.flush`; the newest row stays pending, since its next token is not known."""
        pending = context.take()
        if pending is None:
            return
        features, tokens = pending
        if tokens.size > 1:
            self._rows.write(context.caches[0], self._rows.features(features[:-1]), tokens[1:])
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
        rows, joined = self._rows, mx.concatenate([tokens[1:], anchor])
        state = rows.newest(cache, rows.features(features), joined)
        block = BlockBuilder(readout, pick)
        row = rows.readout_row(state)
        block.add(readout.logits(row))
        for _ in range(1, gamma):
            state = rows.newest(cache, rows.fed_back(state, row), block.tokens[-1])
            row = rows.readout_row(state)
            block.add(readout.logits(row))
        # Removes the newest row and the gamma - 1 rows of the block after it.
        context.trim(gamma)
        return block.draft()


def keep_newest(context: DrafterContext, features: mx.array, tokens: mx.array) -> None:
    """Leave the newest of a context's rows pending."""
    # A copy: a view would keep the memory of all rows before it.
    newest, token = mx.contiguous(features[-1:]), mx.contiguous(tokens[-1:])
    context.pending = [Pending((newest,), token, 1)]
