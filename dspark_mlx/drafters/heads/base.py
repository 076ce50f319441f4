"""What the drafters, the checkpoint's layout and the trainer ask of a sequential head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import mlx.core as mx

from ...checkpoint.linear import Matrix

W1, W2 = "markov_head.markov_w1", "markov_head.markov_w2"
"""Names of the two matrices that every sequential head has (DeepSpec's)."""


@dataclass(frozen=True)
class HeadSizes:
    """The sizes that a head's tensors follow from.

    Attributes:
        rank: of the head's embedding.
        hidden: width of the backbone's rows.
        vocabulary: tokens that can come before a row.
        output: tokens that can be drafted.
    """

    rank: int
    hidden: int
    vocabulary: int
    output: int


class HeadTensors(Protocol):
    """A drafter's tensors by name, in the type that they are computed with."""

    def matrix(self, name: str) -> Matrix:
        """A matrix by its name without `.weight`."""
        ...

    def vector(self, name: str) -> mx.array:
        """A vector by its name."""
        ...


class SequentialHead(Protocol):
    """Turns base logits into corrected logits, one row after the other (paper, section 3.1.2).

    The state is whatever the head carries along the block; None at its start.

    Attributes:
        NAME: as `head` in config.json and `--head` name it.
        w2: map `[output, rank]` from the rank to the logits, the last thing a step does; a
            dataclass copy with fewer rows is the head over fewer tokens.
    """

    NAME: ClassVar[str]

    @property
    def w2(self) -> Matrix:
        """See above."""
        ...

    @staticmethod
    def matrices(sizes: HeadSizes) -> dict[str, tuple[int, int]]:
        """Name (without `.weight`) and `[out, in]` of the head's own matrices beside W1 and W2."""
        ...

    @staticmethod
    def vectors(sizes: HeadSizes) -> dict[str, tuple[int]]:
        """Name and length of the head's vectors."""
        ...

    @classmethod
    def load(cls, tensors: HeadTensors) -> SequentialHead:
        """The head made of a drafter's tensors."""
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
