"""The training objective of slots (paper section 3.3, with DeepSpec's values).

Logits over the vocabulary are by far the largest thing in a step. They are built a few rows at a
time, and each chunk's gradients are taken at once, so memory does not grow with the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from ..errors import InputError


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
class Readout:
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


def score(objective: Objective, readout: Readout, slots: Slots, chunk: int) -> Scores:
    """Score slots, `chunk` rows at a time; differentiable in `hidden`, `vectors` and `w2`."""
    if slots.vectors is None or slots.w2 is None:
        learnt = [slots.hidden]
    else:
        learnt = [slots.hidden, slots.vectors, slots.w2]
    rows = slots.hidden.shape[0]

    @mx.custom_function
    def scored(*inputs: mx.array) -> list[mx.array]:
        by_row = inputs[:2]
        found, row_gradients = [], []
        w2_gradient = mx.zeros(inputs[2].shape, dtype=mx.float32) if len(inputs) == 3 else None
        for start in range(0, rows, chunk):
            part = slice(start, start + chunk)
            constant = (slots.target[part], slots.labels[part], slots.weights[part])
            one = _chunk_scores(objective, readout, constant)
            numbers = list(range(len(inputs)))
            values, gradients = mx.value_and_grad(one, argnums=numbers)(
                *(array[part] for array in by_row), *inputs[2:]
            )
            found.append(values)
            row_gradients.append(gradients[:2])
            if w2_gradient is not None:
                w2_gradient = w2_gradient + gradients[2]
        losses, *columns = zip(*found, strict=True)
        joined = [mx.concatenate(gradients) for gradients in zip(*row_gradients, strict=True)]
        if w2_gradient is not None:
            joined.append(w2_gradient.astype(inputs[2].dtype))
        return [mx.sum(mx.stack(losses)), *(mx.concatenate(c) for c in columns), *joined]

    @scored.vjp
    def backward(
        primals: list[mx.array], cotangents: list[mx.array], outputs: list[mx.array]
    ) -> list[mx.array]:
        gradients = outputs[-len(learnt) :]
        return [(cotangents[0] * gradient).astype(gradient.dtype) for gradient in gradients]

    loss, acceptance, agrees, cross_entropy, *_ = scored(*learnt)
    return Scores(loss, acceptance, agrees, cross_entropy)


def _chunk_scores(
    objective: Objective, readout: Readout, constant: tuple[mx.array, mx.array, mx.array]
) -> Callable[..., tuple[mx.array, ...]]:
    target, labels, weights = constant

    def one(
        hidden: mx.array, vectors: mx.array | None = None, w2: mx.array | None = None
    ) -> tuple[mx.array, ...]:
        logits = readout.base(hidden)
        if vectors is not None and w2 is not None:
            logits = logits + vectors @ w2.T
        logits = logits.astype(mx.float32)
        log_q = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        truth = mx.stop_gradient(readout.target(target).astype(mx.float32))
        p = mx.softmax(truth, axis=-1)
        choice, own = mx.argmax(truth, axis=-1), mx.argmax(logits, axis=-1)
        outside = known = None
        columns = labels
        if readout.ids is not None and readout.columns is not None:
            p = p[:, readout.ids]
            outside = 1 - p.sum(axis=-1)
            own = readout.ids[own]
            columns = readout.columns[labels]
            known = columns >= 0
            columns = mx.maximum(columns, 0)
        distance = mx.abs(mx.exp(log_q) - p).sum(axis=-1)
        entropy = -mx.take_along_axis(log_q, columns[:, None], axis=-1).squeeze(-1)
        if outside is not None and known is not None:
            # A token that cannot be proposed cannot be learnt; its mass counts as missed.
            distance = distance + outside
            entropy = mx.where(known, entropy, 0)
        loss = (weights * (objective.ce * entropy + objective.l1 * distance)).sum()
        acceptance = mx.clip(1 - distance / 2, 0, 1)
        return loss, acceptance, own == choice, entropy

    return one


def confidence_loss(logits: mx.array, acceptance: mx.array, weights: mx.array) -> mx.array:
    """Cross-entropy of the predicted survival to the chance of acceptance (paper section 3.2.1).

    Args:
        logits: of the confidence head, float32 `[n]`.
        acceptance: what it should say, `[n]`; a constant.
        weights: see `Objective.slot_weights`, `[n]`.
    """
    goal = mx.stop_gradient(acceptance)
    return (weights * (mx.logaddexp(mx.zeros_like(logits), logits) - goal * logits)).sum()
