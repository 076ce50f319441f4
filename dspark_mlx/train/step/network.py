"""The forward pass of a training step: from whole texts and anchors to the loss and the metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mlx.core as mx

from ...checkpoint.layout import DRAFT_IDS
from ...checkpoint.linear import Matrix
from ...drafters.dspark.config import DSparkConfig
from ...drafters.heads import load_head
from ...drafters.heads.base import W2
from ...drafters.heads.confidence import load_confidence
from ...drafters.tensors import DrafterTensors
from .blocks import TrainingBlocks, block_hidden
from .objective import Objective, Scores, Slots, TrainingReadout, confidence_loss, score

Parameters = Mapping[str, mx.array]
FROZEN = ("embed_tokens.weight", "lm_head.weight", DRAFT_IDS)
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


class Network:
    """Computes the loss of a drafter in training.

    Args:
        config: the canonical configuration, unquantised.
        objective: weights of the loss's terms.
        embed: the target's embedding, a function from token ids to rows.
        readout: functions from hidden states to logits.
        chunk: number of rows whose logits are in memory at once.
        checkpoint: whether to save memory by computing layers again in the backward pass.
        frozen: tensors of the drafter that are not trained, see `FROZEN`.
    """

    def __init__(
        self,
        config: DSparkConfig,
        objective: Objective,
        embed: Callable[[mx.array], mx.array],
        readout: TrainingReadout,
        chunk: int,
        checkpoint: bool = False,
        frozen: Parameters | None = None,
    ) -> None:
        self.config = config
        self._objective = objective
        self._embed = embed
        self._readout = readout
        self._chunk = chunk
        self._checkpoint = checkpoint
        if config.owns_embedding and frozen:
            self._embed = Matrix(frozen["embed_tokens.weight"]).rows

    def loss(
        self, parameters: Parameters, batch: TrainingBatch, features: Features
    ) -> tuple[mx.array, mx.array]:
        """The loss and the metrics of a batch.

        Args:
            parameters: trained tensors by canonical name, in the type to compute in.
            batch: the texts and blocks.
            features: the target's features of the texts.

        Returns:
            The loss, a scalar; and the sums of `metrics.BlockMetrics.rows`, float32 `[6, gamma]`.
        """
        config, gamma = self.config, self.config.gamma
        stored = DrafterTensors(config, parameters, parameters["fc.weight"].dtype, dequantize=False)
        blocks = self._blocks(batch, features)
        hidden = block_hidden(stored, config, blocks, checkpoint=self._checkpoint)
        hidden = hidden[:, :, config.logits_start :].reshape(-1, gamma, config.hidden_size)
        count = hidden.shape[0]
        before, after = _positions(batch, gamma)
        tokens = batch.tokens.reshape(-1)
        previous, labels = tokens[before], tokens[after]
        vectors, embeddings = self._corrections(stored, hidden, previous)
        weights = self._objective.slot_weights(batch.supervised).reshape(-1)
        rows = features.last.reshape(-1, features.last.shape[-1])

        def flat(x: mx.array | None) -> mx.array | None:
            return None if x is None else x.reshape(count * gamma, -1)

        flat_hidden = hidden.reshape(count * gamma, -1)
        scores = score(
            self._objective,
            self._readout,
            Slots(
                flat_hidden,
                flat(vectors),
                parameters.get(f"{W2}.weight"),
                rows[before.reshape(-1)],
                labels.reshape(-1),
                weights,
            ),
            self._chunk,
        )
        loss, confidence = scores.loss, None
        head = load_confidence(config.confidence, stored)
        if head is not None:
            logits = head(flat_hidden, flat(embeddings))
            confidence = mx.sigmoid(logits)
            loss = loss + self._objective.confidence * confidence_loss(
                logits, scores.acceptance, weights
            )
        return loss, _metric_rows(scores, batch.supervised.reshape(count, gamma), confidence)

    def _blocks(self, batch: TrainingBatch, features: Features) -> TrainingBlocks:
        config = self.config
        anchor_tokens = mx.take_along_axis(batch.tokens, batch.anchors, axis=1)
        masks = mx.full((*batch.anchors.shape, config.block_size - 1), config.mask_token_id)
        ids = mx.concatenate([anchor_tokens[..., None], masks.astype(mx.int32)], axis=-1)
        embeddings = self._embed(ids.reshape(-1)).reshape(*ids.shape, -1)
        return TrainingBlocks(
            mx.concatenate(features.taps, axis=-1), batch.anchors, mx.stop_gradient(embeddings)
        )

    def _corrections(
        self, stored: DrafterTensors, hidden: mx.array, previous: mx.array
    ) -> tuple[mx.array | None, mx.array | None]:
        """The sequential head's vectors and embeddings, `[blocks, gamma, rank]` each.

        The head reads the text's own tokens instead of drafts (teacher forcing).
        """
        head = load_head(self.config.head, stored)
        if head is None:
            return None, None
        vectors, embeddings, state = [], [], None
        for slot in range(self.config.gamma):
            vector, embedding, state = head.vector(previous[:, slot], hidden[:, slot], state)
            vectors.append(vector)
            embeddings.append(embedding)
        return mx.stack(vectors, axis=1), mx.stack(embeddings, axis=1)


def _metric_rows(scores: Scores, supervised: mx.array, confidence: mx.array | None) -> mx.array:
    """The sums of `BlockMetrics.rows`, float32 `[6, gamma]`."""
    acceptance = scores.acceptance.reshape(supervised.shape)
    agrees = scores.agrees.reshape(supervised.shape).astype(mx.float32)
    mask = supervised.astype(mx.float32)
    whole = mask[:, -1:]
    error = mx.zeros_like(mask)
    if confidence is not None:
        error = mx.abs(confidence.reshape(mask.shape) - acceptance)
    return mx.stack(
        [
            mask.sum(axis=0),
            (acceptance * mask).sum(axis=0),
            (error * mask).sum(axis=0),
            mx.broadcast_to(whole.sum(axis=0), mask.shape[1:]),
            (mx.cumprod(acceptance, axis=1) * whole).sum(axis=0),
            (mx.cumprod(agrees, axis=1) * whole).sum(axis=0),
        ]
    )


def _positions(batch: TrainingBatch, gamma: int) -> tuple[mx.array, mx.array]:
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
