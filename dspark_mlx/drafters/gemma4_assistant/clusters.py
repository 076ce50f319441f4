"""The output of E2B's and E4B's assistants: logits of the tokens in a few clusters."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from ...checkpoint.linear import Matrix


@dataclass(frozen=True)
class ClusteredOutput:
    """Scores clusters of tokens, and then the tokens of the likeliest clusters alone.

    transformers gives all other tokens one logit, 1 below the least that was scored, so that its
    logits are finite. Here they have none, which is -inf: the likeliest token is the same, but in a
    softmax a quarter of a million tokens of such a logit would outweigh those that were scored.

    Attributes:
        centroids: scores of the clusters, `[clusters, hidden]`.
        tokens: the token ids of each cluster, int32 `[clusters, vocabulary / clusters]`.
        table: the output matrix, `[vocabulary, hidden]`. A step reads rows of it, which stay packed
            where they are quantised.
        top: how many clusters are taken.
    """

    centroids: Matrix
    tokens: mx.array
    table: Matrix
    top: int

    def __call__(self, row: mx.array) -> tuple[mx.array, mx.array]:
        """Logits of a row `[1, hidden]`, `[1, size]`, and the token id of each, int32 `[size]`."""
        scores = self.centroids(row)[0]
        clusters = mx.argpartition(-scores, kth=self.top - 1)[: self.top]
        ids = self.tokens[clusters].flatten()
        return self.table.take(ids)(row), ids
