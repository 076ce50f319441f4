"""DSpark's contexts of several requests: one forward of the backbone, one product per readout."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from ...types import Draft
from ..base import DrafterContext
from ..batch import Wanted
from ..context_cache import BatchContextCache, joined
from ..vocabulary import DraftOutput, Readout, SharedVocabulary
from .backbone import Backbone, Ragged

# Forwards whose features wait at most; each holds the taps of all requests.
_MAX_PENDING = 32

Choose = Callable[[mx.array, Readout, Sequence[Wanted], mx.array], list[Draft]]
"""Chooses the blocks of requests with one readout: the backbone's rows `[requests, gamma, hidden]`,
the readout, what is wanted, and calibration temperatures `[requests, gamma]`."""

Forward = Callable[
    [Sequence[BatchContextCache], mx.array, Sequence[mx.array] | None, Ragged], mx.array
]
"""The backbone's rows `[requests, rows, hidden]` of the blocks after anchors int `[requests]`; the
other arguments are those of `Backbone.blocks`."""


class DSparkBatch:
    """See `drafters.batch.ContextBatch`.

    Args:
        backbone: the drafter's.
        forward: see `Forward`.
        choose: see `Choose`.
        flush: moves a joining request's pending features into its caches.
        output: gives each request's readout.
        contexts: of the requests, without pending features.
        caches: of the contexts, joined.
    """

    def __init__(
        self,
        backbone: Backbone,
        forward: Forward,
        choose: Choose,
        flush: Callable[[DrafterContext], None],
        output: DraftOutput,
        contexts: Sequence[DrafterContext],
        caches: list[BatchContextCache],
    ) -> None:
        self._backbone = backbone
        self._forward = forward
        self._choose = choose
        self._flush_alone = flush
        self._output = output
        self._shared = SharedVocabulary(output)
        self._contexts = list(contexts)
        self._caches = caches
        self._temperatures = mx.stack([c.confidence_temperatures for c in contexts])
        self._pending: list[tuple[tuple[mx.array, ...], list[int]]] = []
        for context in contexts:
            context.caches = []

    def joined(self, contexts: Sequence[DrafterContext]) -> DSparkBatch:
        """See `ContextBatch.joined`."""
        self._flush()
        for context in contexts:
            self._flush_alone(context)
        caches = joined([self._caches, *(context.caches for context in contexts)])
        return self._with([*self._contexts, *contexts], caches)

    def rows(self, indices: Sequence[int]) -> DSparkBatch:
        """See `ContextBatch.rows`."""
        self._flush()
        caches = [cache.rows(indices) for cache in self._caches]
        return self._with([self._contexts[i] for i in indices], caches)

    def alone(self, index: int) -> None:
        """See `ContextBatch.alone`."""
        self._flush()
        self._contexts[index].caches = [cache.alone(index) for cache in self._caches]

    def extend(self, taps: Sequence[mx.array], tokens: mx.array, kept: Sequence[int]) -> None:
        """See `ContextBatch.extend`; the features wait for the next draft, as a request's own."""
        self._pending.append((tuple(taps), list(kept)))
        if len(self._pending) == _MAX_PENDING:
            self._flush()
            mx.async_eval(self.arrays())

    def draft(self, wanted: Sequence[Wanted]) -> list[Draft | None]:
        """See `ContextBatch.draft`; rows of requests that want none are computed with the rest."""
        anchors = mx.concatenate([each.anchor for each in wanted])
        hidden = self._forward(self._caches, anchors, *self._take_pending())
        drafts: list[Draft | None] = [None] * len(wanted)
        for readout, indices in self._readouts(wanted):
            taken = mx.array(indices)
            blocks = self._choose(
                hidden[taken],
                readout,
                [wanted[i] for i in indices],
                self._temperatures[taken],
            )
            for i, draft in zip(indices, blocks, strict=True):
                drafts[i] = draft
        return drafts

    def arrays(self) -> list[mx.array]:
        """See `ContextBatch.arrays`."""
        arrays = [array for cache in self._caches for array in cache.arrays()]
        return arrays + [tap for taps, _ in self._pending for tap in taps]

    def _with(
        self, contexts: Sequence[DrafterContext], caches: list[BatchContextCache]
    ) -> DSparkBatch:
        parts = (self._backbone, self._forward, self._choose, self._flush_alone, self._output)
        return DSparkBatch(*parts, contexts, caches)

    def _readouts(self, wanted: Sequence[Wanted]) -> list[tuple[Readout, list[int]]]:
        """The readouts of this draft, each with the requests that it serves."""
        drafting = [i for i, each in enumerate(wanted) if each.pick is not None]
        sharing = [i for i in drafting if not wanted[i].own_vocabulary and self._is_cut(i)]
        groups: dict[int, tuple[Readout, list[int]]] = {}
        if sharing:
            vocabularies = [self._contexts[i].vocabulary for i in sharing]
            shared = self._shared.readout([v for v in vocabularies if v is not None])
            groups[id(shared)] = (shared, sharing)
        for i in drafting:
            if i not in sharing:
                readout = self._output.readout(self._contexts[i].vocabulary)
                groups.setdefault(id(readout), (readout, []))[1].append(i)
        return list(groups.values())

    def _is_cut(self, index: int) -> bool:
        vocabulary = self._contexts[index].vocabulary
        return vocabulary is not None and not vocabulary.drafts_from_all

    def _take_pending(self) -> tuple[list[mx.array] | None, Ragged]:
        """K/V rows of the pending features, one array per layer, and how many each request has."""
        pending, self._pending = self._pending, []
        count = len(self._contexts)
        if not pending:
            return None, Ragged((0,) * count)
        parts = [mx.concatenate(list(taps), axis=-1) for taps, _ in pending]
        features = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)
        widths = [part.shape[1] for part in parts]
        kept = np.concatenate(
            [
                np.arange(width)[None] < np.array(rows)[:, None]
                for width, (_, rows) in zip(widths, pending, strict=True)
            ],
            axis=1,
        )
        flat = features.reshape(-1, features.shape[-1])
        if not kept.all():
            flat = flat[mx.array(np.flatnonzero(kept))]
        return self._backbone.context_rows(flat), Ragged(tuple(kept.sum(axis=1).tolist()))

    def _flush(self) -> None:
        """Move the pending features into the caches."""
        rows, ragged = self._take_pending()
        if rows is not None:
            self._backbone.extend_each(self._caches, rows, ragged)
