"""Propose and schedule: the first half of a round, before the target's forward.

A proposer makes the block: the drafter, or a lookup, which copies earlier text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import mlx.core as mx
import numpy as np

from ..sampling.packing import without_nan
from ..schedulers import CopyingPolicy, schedule
from ..schedulers.proposer import DRAFTER, LOOKUP
from ..types import Draft
from .state import Speculation, State


class Proposer(Protocol):
    """Makes the block of one round."""

    @property
    def name(self) -> str:
        """The name that the round reports."""
        ...

    def propose(self, state: State) -> Draft:
        """Propose a block and start its computation; reads nothing back to the host."""
        ...

    def choose_length(self, state: State, draft: Draft, limit: int) -> int:
        """The verify length: how many of the block's tokens are verified, at most `limit`."""
        ...


def choose_proposer(state: State, remaining: int) -> Proposer | None:
    """What makes the next round's block; None for a plain step.

    A copy is looked at first, since it is there before anything is drafted.
    """
    copied = _copied(state, remaining)
    # A plain step that runs already is committed first; it starts no other one.
    state.copy_waits = copied is not None and state.next_step is not None
    if copied is not None:
        return None if state.copy_waits else copied
    if state.speculation is not None and should_draft(state, state.speculation, remaining):
        return Drafted(state.speculation)
    return None


def should_draft(state: State, speculation: Speculation, remaining: int) -> bool:
    """Whether the drafter makes the next block; asks the policy unless the request is parked."""
    if remaining == 1:
        return False
    if state.parked == 0:
        limit = min(speculation.gamma, remaining - 1)
        state.parked = state.policy.park(state.anchor_index, limit)
    return state.parked == 0


def _copied(state: State, remaining: int) -> Copied | None:
    """The copy that the policy chooses; None where it chooses none."""
    lookup, policy = state.lookup, state.policy
    if lookup is None or remaining == 1:
        return None
    assert isinstance(policy, CopyingPolicy)  # checked when the request began
    length = policy.copy_length(state.anchor_index, lookup.survival(), remaining - 1)
    return Copied(lookup.tokens[:length]) if length else None


@dataclass(frozen=True)
class Drafted:
    """The request's drafter as a proposer."""

    speculation: Speculation
    name: ClassVar[str] = DRAFTER

    def propose(self, state: State) -> Draft:
        """See `Proposer.propose`."""
        speculation = self.speculation
        with state.timer.host():
            pick = state.sampler.propose(state.position, speculation.gamma)
            draft = speculation.drafter.draft(speculation.context, state.anchor, pick)
        if state.policy.reads_confidence:
            assert draft.confidence is not None  # checked when the engine was made
            mx.async_eval(draft.tokens, draft.confidence)
        else:
            # The device drafts while Python builds the verify forward. Only the base logits are
            # started here: on MLX's CPU backend a start returns only when most of the graph has
            # run. For a drafter without a parallel part, such as Eagle3, they are the whole draft.
            mx.async_eval(draft.base_logits)
        return draft

    def choose_length(self, state: State, draft: Draft, limit: int) -> int:
        """See `Proposer.choose_length`.

        Waits for the confidences if the policy reads them, and reads nothing else back to the host.
        """
        confidence: list[float] = []
        if state.policy.reads_confidence:
            confidence = without_nan(np.array(draft.confidence).tolist())
        return schedule(state.policy, confidence, limit, state.sampler.deterministic)


@dataclass(frozen=True)
class Copied:
    """A copy of earlier text as a proposer; the policy has chosen its length already.

    Its tokens are certain: q is 1 on each. So a sampled request accepts token x with probability
    p(x), and at a rejection samples from p without x.
    """

    tokens: Sequence[int]
    name: ClassVar[str] = LOOKUP

    def propose(self, state: State) -> Draft:
        """See `Proposer.propose`."""
        with state.timer.host():
            # It begins the sampler's round; no token is left to be picked.
            state.sampler.propose(state.position, len(self.tokens))
            ids, columns = np.unique(np.array(self.tokens, np.int32), return_inverse=True)
            weights = np.full((len(self.tokens), ids.size), -np.inf, np.float32)
            weights[np.arange(len(self.tokens)), columns] = 0.0
            point = mx.array(weights)
            return Draft(
                tokens=mx.array(list(self.tokens), mx.int32),
                base_logits=point,
                logits=point,
                columns=mx.array(columns.astype(np.int32)),
                ids=mx.array(ids),
                weights=point,
            )

    def choose_length(self, state: State, draft: Draft, limit: int) -> int:
        """See `Proposer.choose_length`."""
        return limit
