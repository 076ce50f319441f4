"""Sequential heads (paper section 3.1.2), one file each, behind one interface."""

from __future__ import annotations

from typing import Any, Protocol

import mlx.core as mx

from ...checkpoint.linear import Matrix


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

    def vector(
        self, previous: mx.array, hidden: mx.array, state: Any
    ) -> tuple[mx.array, mx.array, Any]:
        """What W2 maps to the correction of a row's logits, for one row or for rows of n blocks.

        Args:
            previous: the token before each row (the anchor for the first slot), int `[n]`.
            hidden: backbone output of the rows after the final norm, `[n, hidden]`.
            state: what the slot before returned; None for the first.

        Returns:
            The vector `[n, rank]`, the embedding W1[previous] `[n, rank]`, the state.
        """
        ...


def correct(
    head: SequentialHead, base: mx.array, previous: mx.array, hidden: mx.array, state: Any
) -> tuple[mx.array, mx.array, Any]:
    """Correct one row given the token before it: logits = base + W2 vector.

    Args:
        head: the head.
        base: base logits of the row, `[1, vocabulary]`.
        previous, hidden, state: see `SequentialHead.vector`.

    Returns:
        Corrected logits `[1, vocabulary]`, the embedding W1[previous] `[1, rank]`, the state.
    """
    vector, embedding, state = head.vector(previous, hidden, state)
    return head.w2.add_to(base, vector), embedding, state
