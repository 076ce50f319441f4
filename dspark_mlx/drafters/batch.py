"""Drafter contexts of several requests, which draft together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import mlx.core as mx

from ..sampling import Pick
from ..types import Draft
from .base import Drafter, DrafterContext


@dataclass(frozen=True)
class Wanted:
    """What one request of a batch asks of a draft.

    Attributes:
        anchor: its newest committed token, int32 `[1]`.
        pick: chooses each slot's token; None for a request that does not draft in this round.
        own_vocabulary: True where the output depends on which tokens could have been drafted, so
            that no other request's tokens may be among them.
    """

    anchor: mx.array
    pick: Pick | None
    own_vocabulary: bool


class ContextBatch(Protocol):
    """The contexts of a batch's requests, in the batch's order."""

    def joined(self, contexts: Sequence[DrafterContext]) -> Self:
        """This batch with further requests behind its own."""
        ...

    def rows(self, indices: Sequence[int]) -> Self:
        """The requests at `indices`, in that order; the others' contexts are not usable any more.

        Take out with `alone` before what is to go on.
        """
        ...

    def alone(self, index: int) -> None:
        """Make the context of the request at an index usable by itself."""
        ...

    def extend(self, taps: Sequence[mx.array], tokens: mx.array, kept: Sequence[int]) -> None:
        """Append each request's committed tokens and their features.

        Args:
            taps: one array per tap, each `[requests, rows, target_hidden]`.
            tokens: the tokens of the target's forward, int `[requests, rows]`.
            kept: how many of each request's first rows were committed.
        """
        ...

    def draft(self, wanted: Sequence[Wanted]) -> list[Draft | None]:
        """Propose a block for each request that wants one; reads nothing back to the host."""
        ...

    def arrays(self) -> list[mx.array]:
        """Every array that the contexts hold, to be evaluated with the round."""
        ...


@runtime_checkable
class BatchingDrafter(Protocol):
    """A drafter that drafts for several requests in one forward."""

    def batch(self, contexts: Sequence[DrafterContext]) -> ContextBatch:
        """A batch of contexts that hold features; they are the batch's from now on."""
        ...


def context_batch(drafter: Drafter, contexts: Sequence[DrafterContext]) -> ContextBatch:
    """The contexts as a batch; their drafts are made one after the other if need be."""
    if isinstance(drafter, BatchingDrafter):
        return drafter.batch(contexts)
    return OneByOne(drafter, contexts)


class OneByOne:
    """Requests that draft one after the other, see `ContextBatch`.

    Eagle3's drafts are such: each of its steps is one row, so that a batch saves little but weight
    reads of one layer.

    Args:
        drafter: of any method.
        contexts: stay usable by themselves.
    """

    def __init__(self, drafter: Drafter, contexts: Sequence[DrafterContext]) -> None:
        self._drafter = drafter
        self._contexts = list(contexts)

    def joined(self, contexts: Sequence[DrafterContext]) -> OneByOne:
        """See `ContextBatch.joined`."""
        return OneByOne(self._drafter, [*self._contexts, *contexts])

    def rows(self, indices: Sequence[int]) -> OneByOne:
        """See `ContextBatch.rows`."""
        return OneByOne(self._drafter, [self._contexts[i] for i in indices])

    def alone(self, index: int) -> None:
        """See `ContextBatch.alone`."""

    def extend(self, taps: Sequence[mx.array], tokens: mx.array, kept: Sequence[int]) -> None:
        """See `ContextBatch.extend`."""
        for i, (context, rows) in enumerate(zip(self._contexts, kept, strict=True)):
            self._drafter.extend(context, [tap[i] for tap in taps], tokens[i], rows)
        # The next round may be computed by another thread.
        mx.async_eval(self.arrays())

    def draft(self, wanted: Sequence[Wanted]) -> list[Draft | None]:
        """See `ContextBatch.draft`."""
        return [
            None if w.pick is None else self._drafter.draft(context, w.anchor, w.pick)
            for context, w in zip(self._contexts, wanted, strict=True)
        ]

    def arrays(self) -> list[mx.array]:
        """See `ContextBatch.arrays`."""
        return [array for context in self._contexts for array in context.arrays()]
