"""The decode loop: prefill, then rounds of draft, schedule, verify and commit.

Token ids only; knows nothing of text. Plain decoding is the same loop with nothing drafted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from time import perf_counter

import mlx.core as mx
import numpy as np

from ..caches import cache_arrays, new_caches
from ..errors import InputError
from ..sampling import Sampler
from ..sampling.packing import without_nan
from ..schedulers import schedule
from ..targets.tap import not_finite_error
from ..targets.turns import WIRED
from ..types import Fault, Round, Verdict
from .state import Engine, State
from .verify import land, launch

Progress = Callable[[int, int], None]
"""Called with prompt tokens processed and prompt tokens in all."""


def rounds(
    engine: Engine,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    stop_tokens: Collection[int],
    sampler: Sampler,
    prefill_step_size: int = 2048,
    progress: Progress | None = None,
    not_finite: Callable[[], None] = lambda: None,
) -> Iterator[Round]:
    """Decode, one `Round` at a time; closing the iterator frees the request's caches.

    Rounds may be asked for by different threads, one after the other. Requests of one target take
    turns, a round each, whichever threads they are asked for by.

    Args:
        engine: target, drafter and scheduler.
        prompt: token ids, at least one.
        max_tokens: tokens to commit at most, exactly kept.
        stop_tokens: ids that end the request; the one that did is the last token committed.
        sampler: the request's rule for choosing tokens, fresh.
        prefill_step_size: prompt tokens per prefill forward.
        progress: called during the prefill.
        not_finite: called in every round whose drafts or confidences are not finite; such drafts
            are rejected, and such confidences are 0.

    Raises:
        InputError: the target's logits are not finite, or a logits processor's, or a logits
            processor leaves no token.
    """
    target, drafter = engine.target, engine.drafter
    context = drafter.new_context(prompt, sampler.temperature) if drafter else None
    policy = engine.scheduler.start(drafter.config.gamma if drafter else 0, sampler.temperature)
    state = State(new_caches(target.model, "target"), context, policy, sampler)
    remaining, stop = max_tokens, frozenset(stop_tokens)
    with WIRED.use(target.model), contextlib.closing(state):
        started = perf_counter()
        verdict = _prefill(engine, state, prompt, prefill_step_size, progress)
        _check_faults(engine, verdict, len(prompt), 1)
        seconds = perf_counter() - started
        done = Round(verdict.tokens, prefill=True, seconds=seconds, logprobs=verdict.logprobs)
        while True:
            remaining -= len(done.tokens)
            yield done
            if remaining == 0 or done.tokens[-1] in stop:
                return
            draw = _drafted_round if _drafts(engine, state, remaining) else _plain_round
            with target.turns:
                done, finite = draw(engine, state, remaining, stop)
            if not finite:
                not_finite()
            policy.learn(done)


def _prefill(
    engine: Engine,
    state: State,
    prompt: Sequence[int],
    step: int,
    progress: Progress | None,
) -> Verdict:
    """Run the prompt; all but its last token in chunks, whose logits are never computed."""
    tokens = mx.array(list(prompt), dtype=mx.int32)
    body = len(prompt) - 1
    for start in range(0, body, step):
        if progress:
            progress(start, len(prompt))
        chunk = tokens[start : min(start + step, body)]
        with engine.target.turns:
            _, taps = engine.target(chunk, state.caches)
            if engine.drafter and state.context:
                engine.drafter.extend(state.context, taps, chunk)
                engine.drafter.flush(state.context)
                mx.eval(state.context.arrays())
            mx.eval(cache_arrays(state.caches))
            mx.clear_cache()
    state.position, state.anchor = body, tokens[body:]
    state.prefix = tokens if state.sampler.needs_prefix else None
    with engine.target.turns:
        verdict, _ = land(engine, state, launch(engine, state))
    if progress:
        progress(len(prompt), len(prompt))
    return verdict


def _drafts(engine: Engine, state: State, remaining: int) -> bool:
    """Whether the next round drafts; asks the policy unless it has parked."""
    if engine.drafter is None or remaining == 1:
        return False
    if state.parked == 0:
        limit = min(engine.drafter.config.gamma, remaining - 1)
        state.parked = state.policy.park(state.position, limit)
    return state.parked == 0


def _drafted_round(
    engine: Engine, state: State, remaining: int, stop: frozenset[int]
) -> tuple[Round, bool]:
    """Draft, schedule, verify, commit: one host synchronisation, two if confidence decides.

    Returns:
        The round, and whether the drafter's numbers were finite.
    """
    drafter, policy = engine.drafter, state.policy
    assert drafter is not None and state.context is not None
    gamma = drafter.config.gamma
    started = perf_counter()
    pick = state.sampler.propose(state.place, gamma)
    draft = drafter.draft(state.context, state.anchor, pick)
    drafting = perf_counter() - started
    confidence: list[float] = []
    if policy.reads_confidence:
        assert draft.confidence is not None  # checked when the engine was made
        mx.async_eval(draft.tokens, draft.confidence)
        confidence = without_nan(np.array(draft.confidence).tolist())
    else:
        # The device drafts while Python builds the verify forward. Only the block's wide part is
        # launched: a launch returns late on the CPU backend, once little of it is left to run. A
        # drafter that goes token by token has no such part, and is launched whole.
        mx.async_eval(draft.base_logits)
    limit = min(gamma, remaining - 1)
    scheduled = schedule(policy, confidence, limit, state.sampler.deterministic)
    position = state.position + 1
    flight = launch(engine, state, draft, scheduled)
    verdict, committing = land(engine, state, flight)
    done = Round(
        verdict.tokens,
        drafted=gamma,
        scheduled=scheduled,
        accepted=verdict.accepted,
        confidence=verdict.confidence,
        seconds=perf_counter() - started,
        host_seconds=drafting + committing,
        logprobs=verdict.logprobs,
    )
    done = _cut(done, stop)
    # Behind a token that ends the text a processor may well leave nothing.
    _check_faults(engine, verdict, position, len(done.tokens))
    return done, verdict.drafts_finite


def _plain_round(
    engine: Engine, state: State, remaining: int, stop: frozenset[int]
) -> tuple[Round, bool]:
    """One token; the next step starts before this one is read where it is plain as well."""
    started, position = perf_counter(), state.position + 1
    flight = state.ahead or launch(engine, state)
    state.ahead = None
    state.parked = max(state.parked - 1, 0)
    if remaining > 1 and (engine.drafter is None or state.parked):
        state.ahead = launch(engine, state, after=flight)
    verdict, committing = land(engine, state, flight)
    _check_faults(engine, verdict, position, 1)
    seconds = perf_counter() - started
    done = Round(
        verdict.tokens, seconds=seconds, host_seconds=committing, logprobs=verdict.logprobs
    )
    return done, verdict.drafts_finite


def _check_faults(engine: Engine, verdict: Verdict, position: int, kept: int) -> None:
    """Refuse tokens that were chosen from numbers that nothing can be chosen from.

    Args:
        engine: whose target is named.
        verdict: of the round.
        position: of its first token in the request, the prompt's included.
        kept: tokens of it that are committed.
    """
    for row, fault in enumerate(verdict.faults[:kept]):
        if not fault:
            continue
        at = f"for the token at position {position + row}"
        if fault == Fault.TARGET:
            raise not_finite_error(engine.target.where, at)
        if fault == Fault.PROCESSOR:
            found = f"NaN or +inf {at}, of finite logits"
            raise InputError("logits_processors", found, "finite numbers, or -inf")
        raise InputError("logits_processors", f"no token left to choose {at}", "at least one")


def _cut(done: Round, stop: frozenset[int]) -> Round:
    """The round without what follows its first stop token."""
    for i, token in enumerate(done.tokens[:-1]):
        if token in stop:
            return replace(
                done,
                tokens=done.tokens[: i + 1],
                accepted=min(done.accepted, i + 1),
                logprobs=done.logprobs[: i + 1],
            )
    return done
