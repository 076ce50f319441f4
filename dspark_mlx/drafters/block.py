"""Builds a `Draft` slot by slot."""

from __future__ import annotations

import mlx.core as mx

from ..sampling import Pick
from ..types import Draft
from .vocabulary import Readout


class BlockBuilder:
    """Chooses a block's tokens from left to right; every drafting method uses it.

    Args:
        readout: says which token each column of the logits is.
        pick: the request's rule for choosing a slot's token.

    Attributes:
        tokens: the tokens chosen so far, int32 `[1]` each.
    """

    def __init__(self, readout: Readout, pick: Pick) -> None:
        self.tokens: list[mx.array] = []
        self._readout = readout
        self._pick = pick
        self._logits: list[mx.array] = []
        self._columns: list[mx.array] = []
        self._weights: list[mx.array] = []

    def add(self, logits: mx.array) -> mx.array:
        """Choose the next slot's token, int32 `[1]`, from its corrected logits `[1, size]`."""
        column, weights = self._pick(logits, self._readout.ids, self.tokens)
        token = self._readout.tokens(column)
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
            ids=self._readout.ids,
            columns=mx.concatenate(self._columns),
            weights=mx.concatenate(self._weights) if self._weights else None,
        )
