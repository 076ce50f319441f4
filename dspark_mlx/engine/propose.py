"""Draft and schedule: the first half of a round, before the target's forward."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ..sampling.packing import without_nan
from ..schedulers import schedule
from ..types import Draft
from .state import Speculation, State


def should_draft(state: State, remaining: int) -> bool:
    """Whether the next round drafts; asks the policy unless the request is parked."""
    if state.speculation is None or remaining == 1:
        return False
    if state.parked == 0:
        limit = min(state.speculation.gamma, remaining - 1)
        state.parked = state.policy.park(state.anchor_index, limit)
    return state.parked == 0


def propose(state: State, speculation: Speculation) -> Draft:
    """Draft the next block and start its computation; reads nothing back to the host.

    Args:
        state: the request's state.
        speculation: the request's drafter and context.
    """
    with state.timer.host():
        pick = state.sampler.propose(state.position, speculation.gamma)
        draft = speculation.drafter.draft(speculation.context, state.anchor, pick)
    if state.policy.reads_confidence:
        assert draft.confidence is not None  # checked when the engine was made
        mx.async_eval(draft.tokens, draft.confidence)
    else:
        # The device drafts while Python builds the verify forward. Only the base logits are started
        # here: on MLX's CPU backend a start returns only when most of the graph has run. For a
        # drafter without a parallel part, such as Eagle3, they are the whole draft.
        mx.async_eval(draft.base_logits)
    return draft


def choose_length(state: State, draft: Draft, limit: int) -> int:
    """The verify length: how many of the drafted tokens are verified, at most `limit`.

    Waits for the confidences if the policy reads them, and reads nothing else back to the host.
    """
    confidence: list[float] = []
    if state.policy.reads_confidence:
        confidence = without_nan(np.array(draft.confidence).tolist())
    return schedule(state.policy, confidence, limit, state.sampler.deterministic)
