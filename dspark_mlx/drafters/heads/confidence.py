"""The confidence head: the chance that a drafted token survives, given that its prefix did."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from ...checkpoint.linear import Matrix
from .base import HeadSizes, HeadTensors

INPUTS = ("none", "hidden", "hidden+markov")
"""What a confidence head reads: no head, the hidden row, or the hidden row and W1[x_{k-1}]."""
_PROJ = "confidence_head.proj"


@dataclass(frozen=True)
class ConfidenceHead:
    """The confidence head, c_k = sigmoid(w . [h_k ; W1[x_{k-1}]] + b) (paper, section 3.2.1).

    Attributes:
        weight: w, `[1, hidden]` or `[1, hidden + rank]`.
        bias: b, `[1]`.
        reads_embedding: True when the previous token's embedding is part of the input.
    """

    weight: Matrix
    bias: mx.array
    reads_embedding: bool

    def __call__(self, hidden: mx.array, embeddings: mx.array | None) -> mx.array:
        """Confidence logits of a block's slots, float32 `[gamma]`.

        Args:
            hidden: the slots' rows of the backbone after the final norm, `[gamma, hidden]`.
            embeddings: W1 of the token before each slot, `[gamma, rank]`; None without a
                sequential head.
        """
        if self.reads_embedding:
            assert embeddings is not None  # the config guarantees a head
            hidden = mx.concatenate([hidden, embeddings], axis=-1)
        return self.weight.add_to(self.bias, hidden).squeeze(-1).astype(mx.float32)


def confidence_matrices(reads: str, sizes: HeadSizes) -> dict[str, tuple[int, int]]:
    """Maps names without `.weight` to `[out, in]` for the confidence head's matrices.

    Args:
        reads: one of `INPUTS`.
        sizes: the drafter's sizes.
    """
    if reads == "none":
        return {}
    return {_PROJ: (1, sizes.hidden + (sizes.rank if reads == "hidden+markov" else 0))}


def confidence_vectors(reads: str) -> dict[str, tuple[int]]:
    """Maps names to `[length]` for the confidence head's vectors."""
    return {} if reads == "none" else {f"{_PROJ}.bias": (1,)}


def load_confidence(reads: str, tensors: HeadTensors) -> ConfidenceHead | None:
    """The confidence head made of a drafter's tensors; None where `reads` is "none"."""
    if reads == "none":
        return None
    weight, bias = tensors.matrix(_PROJ), tensors.vector(f"{_PROJ}.bias")
    return ConfidenceHead(weight, bias, reads_embedding=reads == "hidden+markov")


def load_unbiased_confidence(tensors: HeadTensors) -> ConfidenceHead:
    """The confidence head of a checkpoint that has no bias; it reads rows and embeddings."""
    weight = tensors.matrix(_PROJ)
    bias = mx.zeros((1,), dtype=weight.weight.dtype)
    return ConfidenceHead(weight, bias, reads_embedding=True)
