"""What every method's training forward takes and gives: texts and features in, block rows out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from ...checkpoint.base_config import DRAFT_IDS
from ...drafters.mtp.config import TARGET_NORM
from ...drafters.tensors import DrafterTensors

Parameters = Mapping[str, mx.array]
FROZEN = ("embed_tokens.weight", "lm_head.weight", DRAFT_IDS, f"{TARGET_NORM}.weight")
"""Names of tensors that a drafter may own and that training does not change."""


@dataclass(frozen=True)
class TrainingBatch:
    """Texts, and the blocks to learn from.

    Attributes:
        tokens: token ids, padded at the end, int32 `[batch, length]`.
        anchors: positions of the blocks' anchors, int32 `[batch, anchors]`.
        supervised: True where a slot's token, and those of all slots before it, were written by the
            target as an answer, bool `[batch, anchors, gamma]`. It is False where an anchor is only
            padding.
    """

    tokens: mx.array
    anchors: mx.array
    supervised: mx.array


@dataclass(frozen=True)
class Features:
    """The target's hidden states for the texts of a batch.

    Attributes:
        taps: the hidden states of each tapped layer, `[batch, length, target_hidden]`.
        last: the input of the target's output matrix, `[batch, length, target_hidden]`.
    """

    taps: list[mx.array]
    last: mx.array


@dataclass(frozen=True)
class BlockRows:
    """A drafter's rows for the blocks of a batch; the text's own tokens precede each slot.

    Attributes:
        hidden: rows after the final norm, which give logits, `[blocks, gamma, hidden]`.
        vectors: what `w2` maps to corrections of the logits, `[blocks, gamma, rank]`; None without.
        w2: the matrix of the corrections, `[size, rank]`; None without.
        embeddings: the sequential head's embeddings, which a confidence head may read,
            `[blocks, gamma, rank]`; None without a head.
        chosen_by_base: whether the logits without corrections decide which tokens can be drafted,
            and so have to be learnt as well.
    """

    hidden: mx.array
    vectors: mx.array | None = None
    w2: mx.array | None = None
    embeddings: mx.array | None = None
    chosen_by_base: bool = False


class TrainingForward(Protocol):
    """How the blocks of a drafting method are computed in training, many of a text at once."""

    def __call__(
        self, stored: DrafterTensors, batch: TrainingBatch, features: Features
    ) -> BlockRows:
        """The rows of a batch's blocks.

        Args:
            stored: the drafter's plain tensors, in the type to compute in.
            batch: the texts and blocks.
            features: the target's features of the texts.
        """
        ...


def slot_positions(batch: TrainingBatch, gamma: int) -> tuple[mx.array, mx.array]:
    """Positions before each slot's token, and of the token, in the flattened batch.

    Both are int32 `[blocks, gamma]`. Positions after a text's end become its last position; no slot
    is supervised there.
    """
    count, length = batch.tokens.shape
    before = batch.anchors[..., None] + mx.arange(gamma)
    start = (mx.arange(count) * length)[:, None, None]
    inside = start + mx.minimum(before, length - 1)
    after = start + mx.minimum(before + 1, length - 1)
    return inside.reshape(-1, gamma), after.reshape(-1, gamma)
