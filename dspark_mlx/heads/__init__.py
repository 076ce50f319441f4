"""Sequential heads (paper section 3.1.2), one file each, behind one interface."""

from __future__ import annotations

from typing import Any, Protocol

import mlx.core as mx

from ..matrix import Matrix


class SequentialHead(Protocol):
    """Turns base logits into corrected logits, one row after the other.

    The state is whatever the head carries along the block; None at its start.

    Attributes:
        w2: map `[vocabulary, rank]` from the rank to the logits, the last thing a step does; a
            dataclass copy with fewer rows is the head over fewer tokens.
    """

    @property
    def w2(self) -> Matrix:
        """See above."""
        ...

    def step(
        self, base: mx.array, previous: mx.array, hidden: mx.array, state: Any
    ) -> tuple[mx.array, mx.array, Any]:
        """Correct one row given the token before it.

        Args:
            base: base logits of the row, `[1, vocabulary]`.
            previous: the token before it (the anchor for the first row), int `[1]`.
            hidden: backbone output of the row after the final norm, `[1, hidden]`.
            state: what the step before returned; None for the first row.

        Returns:
            Corrected logits `[1, vocabulary]`, the embedding W1[previous] `[1, rank]`, the state.
        """
        ...
