"""A sequential head in one file, as docs/extending.md describes it: W2 (scale * W1[x])."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

from dspark_mlx.checkpoint.linear import Matrix
from dspark_mlx.drafters.heads import HEADS
from dspark_mlx.drafters.heads.base import W1, W2, HeadSizes, HeadTensors

_SCALE = "markov_head.scale"


@dataclass(frozen=True)
class ToyHead:
    """A Markov head whose embedding is scaled feature by feature."""

    NAME: ClassVar[str] = "toy"

    w1: Matrix
    w2: Matrix
    scale: mx.array

    @staticmethod
    def matrices(sizes: HeadSizes) -> dict[str, tuple[int, int]]:
        return {}

    @staticmethod
    def vectors(sizes: HeadSizes) -> dict[str, tuple[int]]:
        return {_SCALE: (sizes.rank,)}

    @classmethod
    def load(cls, tensors: HeadTensors) -> ToyHead:
        return cls(tensors.matrix(W1), tensors.matrix(W2), tensors.vector(_SCALE))

    def vector(
        self, previous: mx.array, hidden: mx.array, state: None
    ) -> tuple[mx.array, mx.array, None]:
        embedding = self.w1.rows(previous)
        return self.scale * embedding, embedding, None


HEADS[ToyHead.NAME] = ToyHead
