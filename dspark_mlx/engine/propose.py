"""Propose and schedule: the first half of a round, before the target's forward.

The drafter makes a block, or a lookup does, which copies earlier text.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..drafters.batch import Wanted
from ..sampling import Pick, greedy
from ..sampling.packing import without_nan
from ..schedulers import CopyingPolicy, schedule
from ..schedulers.batch import Candidate
from ..types import Draft
from .group import Group
from .state import State


def which_draft(group: Group) -> list[bool]:
    """Which requests propose a block in the next round; policies or the batch's schedule say so.

    A copy is looked at first, since it is there before anything is drafted. Requests in a batch
    copy nothing. Nobody proposes while a plain step runs: it has written its rows already, and
    other requests than those it was started for may decide now.
    """
    drafting, runs = [False] * len(group.states), group.next_step is not None
    if group.schedule is None:
        for i, state in enumerate(group.states):
            with group.own_code(state):
                copied = _copied(state) if len(group.states) == 1 else ()
                # The step that runs starts no other one.
                state.copy_waits = bool(copied) and runs
                state.copy = () if runs else copied
                drafting[i] = not runs and (bool(copied) or should_draft(state))
        return drafting
    for state in group.states:
        state.copy, state.copy_waits = (), False
    if runs and not group.schedule.parked:
        return drafting
    able = [state.speculation is not None and state.limit > 1 for state in group.states]
    return able if any(able) and not group.schedule.park(candidates(group)) else drafting


def should_draft(state: State) -> bool:
    """Whether the next round drafts; asks the policy unless the request is parked."""
    most = state.limit
    if state.speculation is None or most == 1:
        return False
    if state.parked == 0:
        limit = min(state.speculation.gamma, most - 1)
        state.parked = state.policy.park(state.anchor_index, limit)
    return state.parked == 0


def _copied(state: State) -> Sequence[int]:
    """The copy that the policy chooses; empty where it chooses none."""
    lookup, policy = state.lookup, state.policy
    if lookup is None or state.limit == 1:
        return ()
    assert isinstance(policy, CopyingPolicy)  # checked when the request began
    length = policy.copy_length(state.anchor_index, lookup.survival(), state.limit - 1)
    return lookup.tokens[:length]


def propose(group: Group, drafting: Sequence[bool]) -> list[Draft | None]:
    """Draft the next blocks and start their computation; reads nothing back to the host.

    Args:
        group: the requests.
        drafting: see `which_draft`.
    """
    if group.states[0].copy:
        with group.timer.host():
            return [_copy_draft(group.states[0])]
    with group.timer.host():
        wanted = [
            Wanted(state.anchor, _pick(group, state) if drafts else None, not _exact(state))
            for state, drafts in zip(group.states, drafting, strict=True)
        ]
        drafts = group.draft(wanted)
    waited = _waits(group, drafts)
    for draft, waits in zip(drafts, waited, strict=True):
        if draft and waits:
            assert draft.confidence is not None  # checked when the engine was made
            mx.async_eval(draft.tokens, draft.confidence)
        elif draft:
            # The device drafts while Python builds the verify forward. Only the base logits are
            # started here: on MLX's CPU backend a start returns only when most of the graph has
            # run. For a drafter without a parallel part, such as Eagle3, they are the whole draft.
            mx.async_eval(draft.base_logits)
    return drafts


def _copy_draft(state: State) -> Draft:
    """A copy as a block; the policy has chosen its length already.

    Its tokens are certain: q is 1 on each. So a sampled request accepts token x with probability
    p(x), and at a rejection samples from p without x.
    """
    # It begins the sampler's round; no token is left to be picked.
    state.sampler.propose(state.position, len(state.copy))
    ids, columns = np.unique(np.array(state.copy, np.int32), return_inverse=True)
    weights = np.full((len(state.copy), ids.size), -np.inf, np.float32)
    weights[np.arange(len(state.copy)), columns] = 0.0
    point = mx.array(weights)
    return Draft(
        tokens=mx.array(list(state.copy), mx.int32),
        base_logits=point,
        logits=point,
        columns=mx.array(columns.astype(np.int32)),
        ids=mx.array(ids),
        weights=point,
    )


def choose_lengths(group: Group, drafts: Sequence[Draft | None]) -> list[int]:
    """The verify lengths: how many of each request's drafted tokens are verified.

    Waits for the confidences if a policy reads them, and reads nothing else back to the host.
    """
    confidence: list[list[float]] = []
    for draft, waits in zip(drafts, _waits(group, drafts), strict=True):
        read = np.array(draft.confidence).tolist() if draft and waits else []
        confidence.append(without_nan(read))
    if group.schedule is not None:
        return group.schedule.lengths(candidates(group), confidence)
    lengths = [0] * len(drafts)
    for i, (state, draft) in enumerate(zip(group.states, drafts, strict=True)):
        if draft and state.error is None:
            limit = min(draft.tokens.size, state.limit - 1)
            if state.copy:
                lengths[i] = limit
                continue
            with group.own_code(state):
                lengths[i] = schedule(state.policy, confidence[i], limit, _exact(state))
    return lengths


def candidates(group: Group) -> list[Candidate]:
    """The requests as the batch's schedule sees them."""
    made = []
    for state in group.states:
        assert state.belief is not None and state.speculation is not None
        limit = min(state.speculation.gamma, state.limit - 1)
        samples = state.sampler.temperature > 0
        made.append(Candidate(state.belief, state.anchor_index, limit, _exact(state), samples))
    return made


def _exact(state: State) -> bool:
    return state.sampler.deterministic


def _waits(group: Group, drafts: Sequence[Draft | None]) -> list[bool]:
    """For which requests the host waits for the block's confidences before it is verified."""
    return [
        draft is not None and draft.confidence is not None and state.policy.reads_confidence
        for draft, state in zip(drafts, group.states, strict=True)
    ]


def _pick(group: Group, state: State) -> Pick:
    """The choice of a request's tokens; greedy once its own code has failed."""
    assert state.speculation is not None
    with group.own_code(state):
        pick = state.sampler.propose(state.position, state.speculation.gamma)
        return pick if pick is greedy or len(group.states) == 1 else _kept_apart(group, state, pick)
    return greedy


def _kept_apart(group: Group, state: State, pick: Pick) -> Pick:
    def chosen(
        logits: mx.array, ids: mx.array | None, drawn: Sequence[mx.array]
    ) -> tuple[mx.array, mx.array | None]:
        if state.error is None:
            with group.own_code(state):
                return pick(logits, ids, drawn)
        return greedy(logits)

    return chosen
