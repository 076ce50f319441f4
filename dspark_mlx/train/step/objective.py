"""The training objective of a drafter's slots (paper section 3.3, with DeepSpec's values).

Logits over the vocabulary are by far the largest arrays of a step. They are computed for a chunk of
rows at a time, together with that chunk's gradients, so memory does not grow with the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ...errors import InputError


@dataclass(frozen=True)
class Objective:
    """Weights of the terms of the loss.

    Attributes:
        ce: weight of the cross-entropy to the text's own token.
        l1: weight of the L1 distance to the target's distribution; half of it is the probability
            that sampling rejects a draft.
        confidence: weight of the confidence head's cross-entropy to the probability of acceptance.
        base: weight of both distances for the logits without corrections, where these decide which
            tokens can be drafted.
        decay: slot k (from 1) has the weight exp(-(k - 1) / decay); 0 gives all slots equal weight.
    """

    ce: float = 0.1
    l1: float = 0.9
    confidence: float = 1.0
    base: float = 0.3
    decay: float = 4.0

    def check(self) -> None:
        """Refuse weights outside their range.

        Raises:
            InputError: a weight is below 0, or `ce` and `l1` are both 0.
        """
        for name in ("ce", "l1", "confidence", "base", "decay"):
            if not getattr(self, name) >= 0:
                raise InputError(name, getattr(self, name), "a weight of 0 or more")
        if not self.ce + self.l1 > 0:
            raise InputError("ce and l1", "0 and 0", "at least one above 0")

    def slot_weights(self, supervised: mx.array) -> mx.array:
        """Weights of the slots, float32 `[..., gamma]`, which sum to 1.

        Args:
            supervised: the slots to learn from, bool `[..., gamma]`; others have the weight 0.
        """
        gamma = supervised.shape[-1]
        decay = mx.exp(-mx.arange(gamma) / self.decay) if self.decay else mx.ones(gamma)
        weights = supervised.astype(mx.float32) * decay
        return weights / mx.maximum(weights.sum(), 1e-6)


@dataclass(frozen=True)
class TrainingReadout:
    """The functions from hidden states to logits; the target's matrices are not trained.

    Attributes:
        base: function from the drafter's hidden states `[n, hidden]` to base logits `[n, size]`.
        target: function from the inputs of the target's output matrix `[n, hidden]` to the target's
            logits `[n, vocabulary]`.
        ids: token id of each column of the base logits, int32 `[size]`; None where the columns are
            the whole vocabulary.
        columns: column of each token, -1 where a token has none, int32 `[vocabulary]`; None where
            `ids` is None.
    """

    base: Callable[[mx.array], mx.array]
    target: Callable[[mx.array], mx.array]
    ids: mx.array | None = None
    columns: mx.array | None = None


@dataclass(frozen=True)
class Slots:
    """The slots of a step, one row for each.

    Attributes:
        hidden: the drafter's hidden states after the final norm, `[n, hidden]`.
        vectors: vectors of the sequential head that W2 maps to biases of the logits, `[n, rank]`;
            None without such a head.
        w2: the head's matrix W2, `[size, rank]`; None without such a head.
        target: inputs of the target's output matrix that predict the slots' tokens, `[n, hidden]`.
        labels: the text's tokens, int32 `[n]`.
        weights: weights of the slots, see `Objective.slot_weights`, `[n]`.
    """

    hidden: mx.array
    vectors: mx.array | None
    w2: mx.array | None
    target: mx.array
    labels: mx.array
    weights: mx.array


@dataclass(frozen=True)
class Scores:
    """The loss of the slots, and how good their drafts are.

    Attributes:
        loss: weighted sum of cross-entropy and L1 distance, a differentiable scalar.
        acceptance: probability that a draft drawn from q is accepted, sum min(p, q), float32 `[n]`.
        agrees: whether drafter and target choose the same token greedily, bool `[n]`.
        cross_entropy: cross-entropy to the text's tokens, float32 `[n]`.
    """

    loss: mx.array
    acceptance: mx.array
    agrees: mx.array
    cross_entropy: mx.array


def score(objective: Objective, readout: TrainingReadout, slots: Slots, chunk: int) -> Scores:
    """The scores of slots, computed `chunk` rows at a time.

    The loss is differentiable in `hidden`, `vectors` and `w2`.
    """
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
    """The fields of `Scores`, then the gradient of the loss by each array of `learnt`."""

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
    """Loss, acceptance, agreement, cross-entropy of rows `[n]`, and d loss / d logits `[n, size]`.

    Let q = softmax(z), p the target's distribution and s = sign(q - p). Then d(cross-entropy)/dz =
    q - [label], and d(sum |q - p|)/dz = q (s - q . s). Because p and q both sum to 1, the distance
    is 2 (1 - sum min(p, q)), and s needs only the columns where q exceeds p. The gradient is
    written out because a step spends most of its time in passes over the vocabulary.
    """
    choice, own = mx.argmax(truth, axis=-1), mx.argmax(logits, axis=-1)
    logits, truth = logits.astype(mx.float32), truth.astype(mx.float32)
    q, p = mx.softmax(logits, axis=-1), mx.softmax(truth, axis=-1)
    columns, known = labels, mx.ones(weights.shape)
    if readout.ids is not None and readout.columns is not None:
        # A token outside the draft vocabulary cannot be learnt; its probability counts as missed.
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
    # This is q . s. Where p and q are equal, s may be anything from -1 to 1, and is -1 here.
    balance = 2 * mx.where(above, q, 0).sum(axis=-1, keepdims=True) - 1
    ce, l1 = (weights * known * objective.ce)[:, None], (weights * objective.l1)[:, None]
    gradient = q * mx.where(above, ce + l1 * (1 - balance), ce - l1 * (1 + balance))
    labelled = mx.take_along_axis(gradient, columns, axis=-1) - ce
    gradient = mx.put_along_axis(gradient, columns, labelled, axis=-1)
    return loss, mx.clip(shared, 0, 1), own == choice, entropy, gradient


def confidence_loss(logits: mx.array, acceptance: mx.array, weights: mx.array) -> mx.array:
    """Cross-entropy of the confidence to the probability of acceptance (paper section 3.2.1).

    Args:
        logits: logits of the confidence head, float32 `[n]`.
        acceptance: probabilities of acceptance, `[n]`; they get no gradient.
        weights: weights of the slots, see `Objective.slot_weights`, `[n]`.

    Returns:
        The weighted sum, a scalar.
    """
    goal = mx.stop_gradient(acceptance)
    return (weights * (mx.logaddexp(mx.zeros_like(logits), logits) - goal * logits)).sum()
