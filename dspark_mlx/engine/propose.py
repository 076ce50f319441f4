"""Draft and schedule: the first half of a round, in which nothing of the target runs."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ..sampling.packing import without_nan
from ..schedulers import schedule
from ..types import Draft
from .state import Speculation, State


def should_draft(state: State, remaining: int) -> bool:
    """Whether the next round drafts; asks the policy unless it has parked."""
    if state.speculation is None or remaining == 1:
        return False
    if state.parked == 0:
        limit = min(state.speculation.gamma, remaining - 1)
        state.parked = state.policy.park(state.position, limit)
    return state.parked == 0


def propose(state: State, speculation: Speculation) -> Draft:
    """The next block; nothing is read back, and the device begins to work on it.

    Args:
        state: of the request.
        speculation: the request's.
    """
    with state.timer.host():
        pick = state.sampler.propose(state.place, speculation.gamma)
        draft = speculation.drafter.draft(speculation.context, state.anchor, pick)
    if state.policy.reads_confidence:
        assert draft.confidence is not None  # checked when the engine was made
        mx.async_eval(draft.tokens, draft.confidence)
    else:
        # The device drafts while Python builds the verify forward. Only the block's wide part is
        # launched: a launch returns late on the CPU backend, once little of it is left to run. A
        # drafter that goes token by token has no such part, and is launched whole.
        mx.async_eval(draft.base_logits)
    return draft


def choose_length(state: State, draft: Draft, limit: int) -> int:
    """How many of the drafted tokens are verified, at most `limit`.

    Waits for the confidences where the policy reads them; nothing else of the round is read here.
    """
    confidence: list[float] = []
    if state.policy.reads_confidence:
        confidence = without_nan(np.array(draft.confidence).tolist())
    return schedule(state.policy, confidence, limit, state.sampler.deterministic)
