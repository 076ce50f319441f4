"""The interface of a sequential head, for drafters, the checkpoint's layout and training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import mlx.core as mx

from ...checkpoint.linear import Matrix

W1, W2 = "markov_head.markov_w1", "markov_head.markov_w2"
"""Names of the two matrices that every sequential head has (DeepSpec's)."""


@dataclass(frozen=True)
class HeadSizes:
    """The sizes that determine the shapes of a head's tensors.

    Attributes:
        rank: width of the head's embedding.
        hidden: width of the backbone's rows.
        vocabulary: number of tokens that can precede a slot.
        output: number of tokens that can be drafted.
    """

    rank: int
    hidden: int
    vocabulary: int
    output: int


class HeadTensors(Protocol):
    """Gives a drafter's tensors by name, in the type of the arithmetic."""

    def matrix(self, name: str) -> Matrix:
        """The matrix of a name without `.weight`."""
        ...

    def vector(self, name: str) -> mx.array:
        """The vector of a name."""
        ...


class Correction(Protocol):
    """Corrects base logits given the token before each slot (paper, section 3.1.2).

    Attributes:
        w2: matrix `[output, rank]` that maps a vector to the correction of the logits. A dataclass
            copy with fewer rows of w2 is the correction over fewer tokens.
    """

    @property
    def w2(self) -> Matrix:
        """The matrix that maps the vector to the logits, `[output, rank]`."""
        ...

    def vector(
        self, previous: mx.array, hidden: mx.array, state: Any
    ) -> tuple[mx.array, mx.array, Any]:
        """The vector that W2 maps to the correction, for the same slot of n blocks.

        Args:
            previous: the token before each block's slot (the anchor before the first), int `[n]`.
            hidden: the slot's rows of the backbone after the final norm, `[n, hidden]`.
            state: the state that the slot before returned; None for the first slot.

        Returns:
            The vector `[n, rank]`, the embedding W1[previous] `[n, rank]`, and the state for the
            next slot, None for a head without one.
        """
        ...


class SequentialHead(Correction, Protocol):
    """A correction that DSpark's drafters can have, see `heads.HEADS`.

    Attributes:
        NAME: the head's name in config.json and for `--head`.
    """

    NAME: ClassVar[str]

    @staticmethod
    def matrices(sizes: HeadSizes) -> dict[str, tuple[int, int]]:
        """Maps names without `.weight` to `[out, in]` for the matrices other than W1 and W2."""
        ...

    @staticmethod
    def vectors(sizes: HeadSizes) -> dict[str, tuple[int]]:
        """Maps names to `[length]` for the head's vectors."""
        ...

    @classmethod
    def load(cls, tensors: HeadTensors) -> SequentialHead:
        """The head made of a drafter's tensors."""
        ...


def correct(
    head: Correction, base: mx.array, previous: mx.array, hidden: mx.array, state: Any
) -> tuple[mx.array, mx.array, Any]:
    """Correct one slot's logits given the token before it: logits = base + W2 vector.

    Args:
        head: gives the vector.
        base: base logits of the slot, `[1, output]`.
        previous, hidden, state: see `Correction.vector`.

    Returns:
        Corrected logits `[1, output]`, the embedding W1[previous] `[1, rank]`, and the state for
        the next slot.
    """
    vector, embedding, state = head.vector(previous, hidden, state)
    return head.w2.add_to(base, vector), embedding, state
