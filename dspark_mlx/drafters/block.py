"""Builds a `Draft` slot by slot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx

from ..sampling import Pick, greedy, likeliest
from ..types import Draft
from .heads.base import Correction, correct
from .vocabulary import Readout


class EachPick:
    """The `Pick` of n requests at once, `[n, size]` logits to `[n]` columns.

    Args:
        picks: each request's.

    Attributes:
        weights: by request, the log-weights that its pick gave, `[1, size]` each; not returned,
            since not every rule has them.
    """

    def __init__(self, picks: Sequence[Pick]) -> None:
        self.weights: list[list[mx.array]] = [[] for _ in picks]
        self._picks = picks
        self._greedy = all(pick is greedy for pick in picks)

    def __call__(
        self, logits: mx.array, ids: mx.array | None, drawn: Sequence[mx.array]
    ) -> tuple[mx.array, None]:
        """See `sampling.Pick`."""
        if self._greedy:
            return likeliest(logits), None
        columns = []
        for i, pick in enumerate(self._picks):
            row = slice(i, i + 1)
            column, weights = pick(logits[row], ids, [tokens[row] for tokens in drawn])
            columns.append(column)
            if weights is not None:
                self.weights[i].append(weights)
        return mx.concatenate(columns), None


class BlockBuilder:
    """Chooses a block's tokens from left to right; every drafting method uses it.

    Args:
        readout: says which token each column of the logits is.
        pick: the request's rule for choosing a slot's token; of several, an `EachPick`.

    Attributes:
        tokens: the tokens chosen so far, int32 `[1]` each; of several requests `[n]`.
    """

    def __init__(self, readout: Readout, pick: Pick) -> None:
        self.tokens: list[mx.array] = []
        self._readout = readout
        self._pick = pick
        self._logits: list[mx.array] = []
        self._columns: list[mx.array] = []
        self._ids: list[mx.array] = []
        self._weights: list[mx.array] = []

    def add(self, logits: mx.array, ids: mx.array | None = None) -> mx.array:
        """Choose the next slot's token, int32 `[n]`, from its corrected logits `[n, size]`.

        Args:
            logits: see above.
            ids: the token id of each of this slot's columns, int32 `[size]`, for one request; None
                where all slots have the readout's columns.
        """
        if ids is not None:
            self._ids.append(ids)
        column, weights = self._pick(logits, self._readout.ids if ids is None else ids, self.tokens)
        token = self._readout.tokens(column) if ids is None else ids[column]
        self.tokens.append(token)
        self._logits.append(logits)
        self._columns.append(column)
        if weights is not None:
            self._weights.append(weights)
        return token

    def draft(
        self,
        base_logits: mx.array | None = None,
        confidence_logits: mx.array | None = None,
        confidence: mx.array | None = None,
    ) -> Draft:
        """The finished block.

        Args:
            base_logits: see `Draft`; None when there is no sequential head to correct them.
            confidence_logits, confidence: see `Draft`.
        """
        logits = mx.concatenate(self._logits)
        return Draft(
            tokens=mx.concatenate(self.tokens),
            base_logits=logits if base_logits is None else base_logits,
            logits=logits,
            confidence_logits=confidence_logits,
            confidence=confidence,
            ids=mx.stack(self._ids) if self._ids else self._readout.ids,
            columns=mx.concatenate(self._columns),
            weights=mx.concatenate(self._weights) if self._weights else None,
        )

    def drafts(
        self,
        base_logits: mx.array,
        weights: Sequence[Sequence[mx.array]],
        confidence_logits: mx.array | None = None,
        confidence: mx.array | None = None,
    ) -> list[Draft]:
        """The finished blocks of n requests.

        Args:
            base_logits, confidence_logits, confidence: see `draft`, with an axis for the requests
                in front.
            weights: see `EachPick`.
        """
        tokens, columns = mx.stack(self.tokens, axis=1), mx.stack(self._columns, axis=1)
        logits = mx.stack(self._logits, axis=1)
        return [
            Draft(
                tokens=tokens[i],
                base_logits=base_logits[i],
                logits=logits[i],
                confidence_logits=None if confidence_logits is None else confidence_logits[i],
                confidence=None if confidence is None else confidence[i],
                ids=self._readout.ids,
                columns=columns[i],
                weights=mx.concatenate(list(own)) if own else None,
            )
            for i, own in enumerate(weights)
        ]


def fill_block(
    block: BlockBuilder,
    head: Correction | None,
    anchor: mx.array,
    rows: Iterable[tuple[mx.array, mx.array]],
    state: Any = None,
) -> list[mx.array]:
    """Choose the tokens of n blocks slot by slot; returns the head's embeddings, `[n, rank]` each.

    Args:
        block: takes the tokens.
        head: corrects the logits; None without one.
        anchor: the token before each block, int `[n]`.
        rows: of each slot the base logits `[n, size]` and the backbone's rows `[n, hidden]`.
        state: the head's before the first slot; None where it begins there.
    """
    embeddings, previous = [], anchor
    for row, hidden_row in rows:
        if head is not None:
            row, embedding, state = correct(head, row, previous, hidden_row, state)
            embeddings.append(embedding)
        previous = block.add(row)
    return embeddings
