"""The loss of a training step: from whole texts and anchors to the loss and the metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx

from ...checkpoint.base_config import CanonicalConfig
from ...checkpoint.linear import Matrix
from ...drafters.dspark.config import DSparkConfig
from ...drafters.heads.confidence import load_confidence
from ...drafters.tensors import DrafterTensors
from .forward import BlockRows, Features, Parameters, TrainingBatch, slot_positions
from .methods import FORWARDS
from .objective import Objective, Scores, Slots, TrainingReadout, confidence_loss, score


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
        config: CanonicalConfig,
        objective: Objective,
        embed: Callable[[mx.array], mx.array],
        readout: TrainingReadout,
        chunk: int,
        checkpoint: bool = False,
        frozen: Parameters | None = None,
    ) -> None:
        self.config = config
        self._objective = objective
        self._readout = readout
        self._chunk = chunk
        self._frozen = dict(frozen or {})
        if config.owns_embedding and frozen:
            embed = Matrix(frozen["embed_tokens.weight"]).rows
        self._forward = FORWARDS[config.METHOD](config, embed, checkpoint)

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
        config, dtype = self.config, parameters["fc.weight"].dtype
        stored = DrafterTensors(config, {**self._frozen, **parameters}, dtype, dequantize=False)
        blocks = self._forward(stored, batch, features)
        slots = _slots(self._objective, batch, features, blocks)
        scores = score(self._objective, self._readout, slots, self._chunk)
        loss, confidence = scores.loss, None
        if blocks.chosen_by_base:
            base = replace(slots, vectors=None, w2=None)
            unary = score(self._objective, self._readout, base, self._chunk).loss
            loss = loss + self._objective.base * unary
        if isinstance(config, DSparkConfig) and config.has_confidence:
            head = load_confidence(config.confidence, stored)
            assert head is not None
            logits = head(slots.hidden, _flat(blocks.embeddings))
            confidence = mx.sigmoid(logits)
            loss = loss + self._objective.confidence * confidence_loss(
                logits, scores.acceptance, slots.weights
            )
        return loss, _metric_rows(scores, batch.supervised.reshape(-1, config.gamma), confidence)


def _flat(x: mx.array | None) -> mx.array | None:
    """Rows of blocks `[blocks, gamma, n]` as `[blocks * gamma, n]`."""
    return None if x is None else x.reshape(-1, x.shape[-1])


def _slots(
    objective: Objective, batch: TrainingBatch, features: Features, blocks: BlockRows
) -> Slots:
    """A batch's slots, flattened."""
    before, after = slot_positions(batch, batch.supervised.shape[-1])
    last = features.last.reshape(-1, features.last.shape[-1])
    return Slots(
        blocks.hidden.reshape(-1, blocks.hidden.shape[-1]),
        _flat(blocks.vectors),
        blocks.w2,
        last[before.reshape(-1)],
        batch.tokens.reshape(-1)[after.reshape(-1)],
        objective.slot_weights(batch.supervised).reshape(-1),
    )


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
