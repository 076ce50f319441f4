"""The decode loop: prefill, then rounds of draft, schedule, verify and commit.

It works on token ids; text is unknown here. Plain decoding is the same loop without drafts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator, Sequence
from dataclasses import replace

from ..progress import ProgressCallback
from ..sampling import Sampler
from ..schedulers import LearningPolicy
from ..targets.turns import WIRED
from ..types import Draft, Round, Verdict
from .faults import refuse_faults
from .keep import keeping
from .prefill import prefill
from .propose import choose_length, propose, should_draft
from .state import Engine, Speculation, State
from .timer import RoundTimer
from .verify import commit, start_verify


def rounds(
    engine: Engine,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    stop_tokens: Collection[int],
    sampler: Sampler,
    prefill_step_size: int = 2048,
    progress: ProgressCallback | None = None,
) -> Generator[Round, None, None]:
    """Decode a request and yield its rounds; closing the generator frees the request's caches.

    Different threads may call `next`, but not at the same time. Concurrent requests of one target
    take turns, one round each.

    Args:
        engine: target, drafter and scheduler.
        prompt: token ids, at least one.
        max_tokens: the most tokens to commit, which is never exceeded.
        stop_tokens: ids that end the request; the stop token is the last token committed.
        sampler: the request's rule for choosing tokens, from `make_sampler`.
        prefill_step_size: prompt tokens per prefill forward.
        progress: called during the prefill with prompt tokens done and in all; None for no calls.

    Raises:
        InputError: the target's logits are not finite, a logits processor made them NaN or +inf, or
            it left no token.
    """
    target, stop = engine.target, frozenset(stop_tokens)
    speculation = Speculation.start(engine, list(prompt), sampler.temperature)
    policy = engine.scheduler.start(speculation.gamma if speculation else 0, sampler.temperature)
    learning = policy if isinstance(policy, LearningPolicy) else None
    state = State(target.new_caches(), speculation, policy, sampler)
    tokens = list(prompt)
    with WIRED.use(target.model), contextlib.closing(state), keeping(engine, state, tokens) as kept:
        round_ = prefill(engine, state, prompt, prefill_step_size, progress, kept)
        remaining = max_tokens
        while True:
            remaining -= len(round_.tokens)
            tokens += round_.tokens
            yield round_
            if remaining == 0 or round_.tokens[-1] in stop:
                return
            limit = target.cache_settings.rows_until_quantized(state.anchor_index, remaining)
            drafts = should_draft(state, limit)
            with target.turns:
                state.timer = RoundTimer()
                round_ = (drafted_round if drafts else plain_round)(engine, state, limit, stop)
            policy.learn(round_)
            if learning:
                round_ = replace(round_, decision=learning.decision)


def drafted_round(engine: Engine, state: State, remaining: int, stop: frozenset[int]) -> Round:
    """Draft, schedule, verify, commit (paper, section 3)."""
    assert state.speculation is not None
    first = state.anchor_index + 1
    draft = propose(state, state.speculation)
    gamma = draft.tokens.size
    length = choose_length(state, draft, limit=min(gamma, remaining - 1))
    forward = start_verify(engine, state, draft, length)
    verdict = commit(state, forward, stop)
    round_ = cut_at_stop(make_round(state, verdict, draft, length), stop)
    # After a stop token a logits processor may rightly leave no token.
    refuse_faults(engine, verdict.faults[: len(round_.tokens)], first)
    return round_


def plain_round(engine: Engine, state: State, remaining: int, stop: frozenset[int]) -> Round:
    """Decode one token; if the next step is plain too, it starts before this one is read."""
    first = state.anchor_index + 1
    forward = state.next_step or start_verify(engine, state)
    state.next_step = None
    state.parked = max(state.parked - 1, 0)
    if remaining > 1 and (state.speculation is None or state.parked):
        state.next_step = start_verify(engine, state, after=forward)
    verdict = commit(state, forward)
    refuse_faults(engine, verdict.faults, first)
    return make_round(state, verdict)


def make_round(
    state: State, verdict: Verdict, draft: Draft | None = None, length: int = 0
) -> Round:
    """The `Round` of a verdict that was just committed; without a draft, of a plain step."""
    return Round(
        verdict.tokens,
        drafted=draft.tokens.size if draft else 0,
        proposer="drafter" if draft else "",
        scheduled=length,
        accepted=verdict.accepted,
        confidence=verdict.confidence,
        seconds=state.timer.seconds,
        host_seconds=state.timer.host_seconds,
        rollback_seconds=state.timer.rollback_seconds,
        logprobs=verdict.logprobs,
        drafts_finite=verdict.drafts_finite,
    )


def cut_at_stop(round_: Round, stop: frozenset[int]) -> Round:
    """The round without the tokens after its first stop token."""
    for i, token in enumerate(round_.tokens[:-1]):
        if token in stop:
            return replace(
                round_,
                tokens=round_.tokens[: i + 1],
                accepted=min(round_.accepted, i + 1),
                logprobs=round_.logprobs[: i + 1],
            )
    return round_
