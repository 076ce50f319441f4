"""Sampling: the rules that choose a request's tokens, one file per rule, and their interface.

All arithmetic is float32 from the logits on and stays on the device. The host reads each round's
result back as one small array, see `packing`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import mlx.core as mx

from ..types import Draft

Pick: TypeAlias = Callable[
    [mx.array, mx.array | None, Sequence[mx.array]], tuple[mx.array, mx.array | None]
]
"""Chooses one slot's token.

Called with the slot's corrected logits `[1, size]`, the token id of each column (None for the whole
vocabulary) and the block's tokens so far, int32 `[1]` each. Returns the chosen column, int32 `[1]`,
and the log-weights of q, float32 `[1, size]`, or None under rules that do not need q.
"""


@dataclass(frozen=True)
class Position:
    """The position of a forward's first row, the anchor, in its request.

    Attributes:
        index: number of tokens before the anchor; row i chooses the token at `index + 1 + i`.
        prefix: every token up to the anchor, int32 `[index + 1]`; None for a request without
            logits processors.
    """

    index: int
    prefix: mx.array | None = None


@dataclass(frozen=True)
class LogProbs:
    """The target's log-probabilities at every row, after the logits processors.

    Attributes:
        chosen: log-probability of the token that the row would commit, float32 `[rows]`.
        ids: the likeliest n tokens of each row, the likeliest first, int32 `[rows, n]`.
        values: log-probabilities of `ids`, float32 `[rows, n]`.
    """

    chosen: mx.array
    ids: mx.array
    values: mx.array


@dataclass(frozen=True)
class Judgement:
    """A rule's result for a verify forward, on the device.

    Attributes:
        accepted: number of drafted tokens that survive, int32 `[1]`; None for a plain step.
        last: the correction or the bonus, int32 `[1]`.
        faults: a `types.Fault`, or 0, for each row, int32 `[rows]`.
        finite: True for each verified slot whose drafter logits are finite, bool `[scheduled]`;
            None when no slot was verified.
        logprobs: log-probabilities at every row; None unless the request asks for them.
    """

    accepted: mx.array | None
    last: mx.array
    faults: mx.array
    finite: mx.array | None = None
    logprobs: LogProbs | None = None


class Sampler(Protocol):
    """One request's rule for choosing tokens; it serves all rounds of the request."""

    @property
    def deterministic(self) -> bool:
        """True when no schedule can change the output, so that a policy may read anything."""
        ...

    @property
    def temperature(self) -> float:
        """The request's effective temperature, as `effective_temperature` says; 0 if greedy."""
        ...

    @property
    def needs_prefix(self) -> bool:
        """True when the rule reads `Position.prefix`."""
        ...

    @property
    def arrays(self) -> list[mx.array]:
        """Arrays that the rule keeps on the device between rounds.

        Every round evaluates them, since only the thread that made an array can evaluate it, and
        another thread may run the next round.
        """
        ...

    def propose(self, position: Position, gamma: int) -> Pick:
        """Begin a round that drafts `gamma` slots; returns the choice of their tokens."""
        ...

    def judge(self, logits: mx.array, position: Position, draft: Draft | None) -> Judgement:
        """Accept drafted tokens, and choose the correction or the bonus.

        Args:
            logits: the target's logits after the anchor and after each verified token,
                `[scheduled + 1, vocabulary]`.
            position: position of the anchor.
            draft: the block whose first `scheduled` tokens were verified; None for a plain step.
        """
        ...


def finite_rows(logits: mx.array) -> mx.array:
    """True for each row that a token can be chosen from: `[rows, vocabulary]` to bool `[rows]`.

    A row may hold -inf beside finite numbers. MLX's maximum of a row with a NaN is NaN, on every
    backend.
    """
    return mx.isfinite(logits.max(axis=-1))


def finite_drafts(draft: Draft, scheduled: int) -> mx.array:
    """True for each of the first slots whose drafter logits are finite, bool `[scheduled]`."""
    return finite_rows(draft.logits[:scheduled])


def likeliest(logits: mx.array) -> mx.array:
    """The most likely token of each row: `[rows, vocabulary]` to int32 `[rows]`."""
    return mx.argmax(logits, axis=-1).astype(mx.int32)


def greedy(
    logits: mx.array, ids: mx.array | None = None, drawn: Sequence[mx.array] = ()
) -> tuple[mx.array, None]:
    """The `Pick` of greedy drafts."""
    return likeliest(logits), None
