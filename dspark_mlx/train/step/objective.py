"""The training objective of slots (paper section 3.3, with DeepSpec's values).

Logits over the vocabulary are by far the largest thing in a step. They are built a few rows at a
time, and each chunk's gradients are taken at once, so memory does not grow with the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ...errors import InputError


@dataclass(frozen=True)
class Objective:
    """Weights of the terms.

    Attributes:
        ce: of the cross-entropy to the text's own token.
        l1: of the L1 distance to the target's distribution, which bounds what sampling rejects.
        confidence: of the confidence head's cross-entropy to the chance of acceptance.
        decay: slot k (from 1) weighs exp(-(k - 1) / decay); 0 weighs all alike.
    """

    ce: float = 0.1
    l1: float = 0.9
    confidence: float = 1.0
    decay: float = 4.0

    def check(self) -> None:
        """Refuse weights that cannot be meant.

        Raises:
            InputError: one below 0, or nothing for the drafts to learn from.
        """
        for name in ("ce", "l1", "confidence", "decay"):
            if not getattr(self, name) >= 0:
                raise InputError(name, getattr(self, name), "a weight of 0 or more")
        if not self.ce + self.l1 > 0:
            raise InputError("ce and l1", "0 and 0", "at least one above 0")

    def slot_weights(self, supervised: mx.array) -> mx.array:
        """Weights that sum to 1, float32 `[..., gamma]`, from a mask of the same shape."""
        gamma = supervised.shape[-1]
        decay = mx.exp(-mx.arange(gamma) / self.decay) if self.decay else mx.ones(gamma)
        weights = supervised.astype(mx.float32) * decay
        return weights / mx.maximum(weights.sum(), 1e-6)


@dataclass(frozen=True)
class TrainingReadout:
    """From rows to logits, the target's matrices frozen.

    Attributes:
        base: the drafter's final rows `[n, hidden]` to base logits `[n, size]`.
        target: what the target's output matrix reads, `[n, hidden]`, to its logits
            `[n, vocabulary]`.
        ids: token id of each column of the base logits, int32 `[size]`; None for all tokens.
        columns: the reverse, int32 `[vocabulary]`, -1 where a token has none; None likewise.
    """

    base: Callable[[mx.array], mx.array]
    target: Callable[[mx.array], mx.array]
    ids: mx.array | None = None
    columns: mx.array | None = None


@dataclass(frozen=True)
class Slots:
    """The slots of a step, as rows.

    Attributes:
        hidden: the drafter's final rows, `[n, hidden]`.
        vectors: what the sequential head's W2 maps to their correction, `[n, rank]`; None without.
        w2: W2, `[size, rank]`; None without.
        target: what the target's output matrix reads before each slot's token, `[n, hidden]`.
        labels: the text's tokens, int32 `[n]`.
        weights: see `Objective.slot_weights`, `[n]`.
    """

    hidden: mx.array
    vectors: mx.array | None
    w2: mx.array | None
    target: mx.array
    labels: mx.array
    weights: mx.array


@dataclass(frozen=True)
class Scores:
    """What the slots are worth.

    Attributes:
        loss: weighted sum of cross-entropy and L1, a differentiable scalar.
        acceptance: chance that a draft drawn from q is accepted, sum min(p, q), float32 `[n]`.
        agrees: whether drafter and target would choose the same token greedily, bool `[n]`.
        cross_entropy: of the text's tokens, float32 `[n]`.
    """

    loss: mx.array
    acceptance: mx.array
    agrees: mx.array
    cross_entropy: mx.array


def score(objective: Objective, readout: TrainingReadout, slots: Slots, chunk: int) -> Scores:
    """Score slots, `chunk` rows at a time; differentiable in `hidden`, `vectors` and `w2`."""
    if slots.vectors is None or slots.w2 is None:
        learnt = [slots.hidden]
    else:
        learnt = [slots.hidden, slots.vectors, slots.w2]

    @mx.custom_function
    def scored(*inputs: mx.array) -> list[mx.array]:
        return _scored(objective, readout, slots, list(inputs), chunk)

    @scored.vjp
    def backward(
        primals: list[mx.array], cotangents: list[mx.array], outputs: list[mx.array]
    ) -> list[mx.array]:
        gradients = outputs[-len(learnt) :]
        return [(cotangents[0] * gradient).astype(gradient.dtype) for gradient in gradients]

    outputs: Any = scored(*learnt)
    return Scores(*outputs[:4])


def _scored(
    objective: Objective, readout: TrainingReadout, slots: Slots, learnt: list[mx.array], chunk: int
) -> list[mx.array]:
    """Loss, the three columns of `Scores`, and the gradient of each of what is learnt."""

    def logits(
        hidden: mx.array, vectors: mx.array | None = None, w2: mx.array | None = None
    ) -> mx.array:
        base = readout.base(hidden)
        return base if vectors is None or w2 is None else base + vectors @ w2.T

    columns: list[list[mx.array]] = [[], [], [], []]
    row_gradients: list[list[mx.array]] = []
    w2_gradient = mx.zeros(learnt[2].shape, dtype=mx.float32) if len(learnt) == 3 else None
    for start in range(0, learnt[0].shape[0], chunk):
        part = slice(start, start + chunk)
        inputs = [array[part] for array in learnt[:2]] + learnt[2:]
        rows = logits(*inputs)
        truth = readout.target(slots.target[part])
        constants = (slots.labels[part], slots.weights[part])
        *found, gradient = _rows_scored(objective, readout, rows, truth, *constants)
        for column, value in zip(columns, found, strict=True):
            column.append(value)
        _, gradients = mx.vjp(logits, inputs, [gradient.astype(rows.dtype)])
        row_gradients.append(gradients[:2])
        if w2_gradient is not None:
            w2_gradient = w2_gradient + gradients[2]
    joined = [mx.concatenate(list(parts)) for parts in zip(*row_gradients, strict=True)]
    if w2_gradient is not None:
        joined.append(w2_gradient.astype(learnt[2].dtype))
    loss, *others = (mx.concatenate(column) for column in columns)
    return [loss.sum(), *others, *joined]


def _rows_scored(
    objective: Objective,
    readout: TrainingReadout,
    logits: mx.array,
    truth: mx.array,
    labels: mx.array,
    weights: mx.array,
) -> tuple[mx.array, mx.array, mx.array, mx.array, mx.array]:
    """Loss, acceptance, agreement, cross-entropy by row `[n]`, and d loss / d logits `[n, size]`.

    With q = softmax(z), p the target's and s = sign(q - p): d(cross-entropy)/dz = q - [label] and
    d(sum |q - p|)/dz = q (s - q . s). Both sum to 1, so the distance is 2 (1 - sum min(p, q)), and
    s needs only the columns where q exceeds p. Written out, because passes over the vocabulary are
    what a step's time goes into.
    """
    choice, own = mx.argmax(truth, axis=-1), mx.argmax(logits, axis=-1)
    logits, truth = logits.astype(mx.float32), truth.astype(mx.float32)
    q, p = mx.softmax(logits, axis=-1), mx.softmax(truth, axis=-1)
    columns, known = labels, mx.ones(weights.shape)
    if readout.ids is not None and readout.columns is not None:
        # A token that cannot be proposed cannot be learnt; its mass counts as missed.
        p = p[:, readout.ids]
        own = readout.ids[own]
        columns = readout.columns[labels]
        known = (columns >= 0).astype(mx.float32)
        columns = mx.maximum(columns, 0)
    columns = columns[:, None]
    shared = mx.minimum(q, p).sum(axis=-1)
    at_label = mx.take_along_axis(logits, columns, axis=-1).squeeze(-1)
    entropy = known * (mx.logsumexp(logits, axis=-1) - at_label)
    loss = weights * (objective.ce * entropy + objective.l1 * 2 * (1 - shared))
    above = q > p
    # q . s, with s = -1 where they are equal: the distance has no slope of its own there.
    balance = 2 * mx.where(above, q, 0).sum(axis=-1, keepdims=True) - 1
    ce, l1 = (weights * known * objective.ce)[:, None], (weights * objective.l1)[:, None]
    gradient = q * mx.where(above, ce + l1 * (1 - balance), ce - l1 * (1 + balance))
    labelled = mx.take_along_axis(gradient, columns, axis=-1) - ce
    gradient = mx.put_along_axis(gradient, columns, labelled, axis=-1)
    return loss, mx.clip(shared, 0, 1), own == choice, entropy, gradient


def confidence_loss(logits: mx.array, acceptance: mx.array, weights: mx.array) -> mx.array:
    """Cross-entropy of the predicted survival to the chance of acceptance (paper section 3.2.1).

    Args:
        logits: of the confidence head, float32 `[n]`.
        acceptance: what it should say, `[n]`; a constant.
        weights: see `Objective.slot_weights`, `[n]`.
    """
    goal = mx.stop_gradient(acceptance)
    return (weights * (mx.logaddexp(mx.zeros_like(logits), logits) - goal * logits)).sum()
