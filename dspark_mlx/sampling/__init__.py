"""Sampling: how a request's tokens are chosen. One rule a file, one interface.

All arithmetic is float32 from the logits on, and stays on the device: what the host needs of a
round comes back in one small array, see `packing`.
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
vocabulary) and the block's tokens so far, int32 `[1]` each. Returns the column, int32 `[1]`, and
the log-weights `[1, size]` float32 that it was drawn by; None where it was not drawn.
"""


@dataclass(frozen=True)
class Position:
    """Where a forward's first row stands.

    Attributes:
        position: the anchor's; row i chooses the token at `position + 1 + i`.
        prefix: every token up to the anchor, int32 `[position + 1]`; None for a request without
            logits processors.
    """

    position: int
    prefix: mx.array | None = None


@dataclass(frozen=True)
class LogProbs:
    """The target's log-probabilities, after the logits processors, at every row.

    Attributes:
        chosen: of the token that would be committed there, float32 `[rows]`.
        ids, values: the likeliest n tokens, falling, int32 and float32 `[rows, n]`.
    """

    chosen: mx.array
    ids: mx.array
    values: mx.array


@dataclass(frozen=True)
class Judgement:
    """What a rule made of a verify forward, on the device.

    Attributes:
        accepted: drafted tokens that survive, int32 `[1]`; None where nothing was drafted.
        last: the correction, or the bonus, int32 `[1]`.
        faults: a `types.Fault`, or 0, for each row, int32 `[rows]`.
        finite: whether the drafter's logits are, for each verified slot, bool `[scheduled]`; None
            where nothing was.
        logprobs: None unless asked for.
    """

    accepted: mx.array | None
    last: mx.array
    faults: mx.array
    finite: mx.array | None = None
    logprobs: LogProbs | None = None


class Sampler(Protocol):
    """One request's rule for choosing tokens, from its first round to its last."""

    @property
    def deterministic(self) -> bool:
        """True where the schedule cannot change the output, so that it may depend on anything."""
        ...

    @property
    def temperature(self) -> float:
        """Above 0 where tokens are drawn; see `heat`."""
        ...

    @property
    def needs_prefix(self) -> bool:
        """Whether `Place.prefix` is read."""
        ...

    @property
    def kept(self) -> list[mx.array]:
        """What it keeps on the device from round to round.

        It is evaluated with every round: an array that is not belongs to the thread that made it.
        """
        ...

    def propose(self, place: Position, gamma: int) -> Pick:
        """Begin a round that drafts `gamma` slots."""
        ...

    def judge(self, logits: mx.array, place: Position, draft: Draft | None) -> Judgement:
        """Accept and choose.

        Args:
            logits: the target's, `[scheduled + 1, vocabulary]`: after the anchor and after each
                verified token.
            place: of the first row.
            draft: the block whose first `scheduled` tokens were verified; None for a plain step.
        """
        ...


def finite_rows(logits: mx.array) -> mx.array:
    """Whether a token can be chosen from each row: `[rows, vocabulary]` to bool `[rows]`.

    A row may have -inf, but not alone. MLX's maximum is NaN where anything is, on every backend.
    """
    return mx.isfinite(logits.max(axis=-1))


def finite_drafts(draft: Draft, scheduled: int) -> mx.array:
    """Whether the drafter's logits are finite in each of the first slots, bool `[scheduled]`."""
    return finite_rows(draft.logits[:scheduled])


def likeliest(logits: mx.array) -> mx.array:
    """The most likely token of each row: `[rows, vocabulary]` to int32 `[rows]`."""
    return mx.argmax(logits, axis=-1).astype(mx.int32)


def greedy(
    logits: mx.array, ids: mx.array | None = None, drawn: Sequence[mx.array] = ()
) -> tuple[mx.array, None]:
    """The `Pick` of greedy drafts."""
    return likeliest(logits), None
