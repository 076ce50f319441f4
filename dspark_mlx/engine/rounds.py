"""The decode loop: prefill, then rounds of draft, schedule, verify and commit.

It works on token ids; text is unknown here. Plain decoding is the same loop without drafts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator, Sequence
from dataclasses import replace
from typing import Required, TypedDict

from ..lookup.lookup import Lookup
from ..progress import ProgressCallback
from ..sampling import Sampler
from ..schedulers.proposer import DRAFTER, LOOKUP
from ..schedulers.round_times import PLAIN
from ..targets.turns import WIRED
from ..types import Draft, Round, Verdict
from ..vision.encoder import ImagePrompt
from .faults import refuse_faults
from .group import Group, Solo
from .keep import keeping
from .prefill import Prefill
from .propose import candidates, choose_lengths, propose, which_draft
from .state import Engine, State
from .timer import RoundTimer
from .verify import commit, start_verify


class Begun(TypedDict, total=False):
    """Keyword arguments of `rounds` and of `active.ActiveRequests.add`."""

    max_tokens: Required[int]
    stop_tokens: Required[Collection[int]]
    sampler: Required[Sampler]
    prefill_step_size: int
    progress: ProgressCallback | None
    images: ImagePrompt | None
    lookup: Lookup | None


def rounds(
    engine: Engine,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    stop_tokens: Collection[int],
    sampler: Sampler,
    prefill_step_size: int = 2048,
    progress: ProgressCallback | None = None,
    images: ImagePrompt | None = None,
    lookup: Lookup | None = None,
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
        images: the prompt with its images, of the same tokens; None where it has none.
        lookup: the request's own, which has read its references; None to copy nothing. Policies
            that know drafts alone leave it out.

    Raises:
        InputError: the target's logits are not finite, a logits processor made them NaN or +inf, or
            it left no token.
    """
    state = State.start(engine, prompt, sampler, max_tokens, stop_tokens, lookup)
    group = Solo(engine, state)
    # Tokens do not tell images apart.
    with (
        WIRED.use(engine.target.model),
        contextlib.closing(state),
        keeping(group, keeps=images is None) as kept,
    ):
        reading = Prefill(group, prompt, prefill_step_size, progress, images, kept)
        round_: Round | None = None
        while round_ is None:
            round_ = reading.step()
        state.count(round_)
        yield round_
        while not state.ended:
            (round_,) = next_rounds(group)
            assert round_ is not None  # what fails alone is raised
            yield round_


def next_rounds(group: Group, more: bool = True) -> list[Round | None]:
    """Run a round of each request; None for one whose own code failed, see `State.error`.

    Args:
        group: requests that have read their prompts and have not ended.
        more: whether the same requests will have another round.

    Raises:
        InputError: see `rounds`; only where the request is alone.
    """
    drafting = which_draft(group)
    with group.engine.target.turns:
        group.timer = RoundTimer()
        made = drafted_rounds(group, drafting) if any(drafting) else plain_rounds(group, more)
    return [
        round_ and group.learned(state, round_)
        for state, round_ in zip(group.states, made, strict=True)
    ]


def drafted_rounds(group: Group, drafting: Sequence[bool]) -> list[Round | None]:
    """Draft, schedule, verify, commit (paper, section 3).

    Args:
        group: the requests.
        drafting: which of them draft; the others take a plain step along.

    Returns:
        Each request's round; None where its own code failed.
    """
    drafts = propose(group, drafting)
    lengths = choose_lengths(group, drafts)
    forward = start_verify(group, drafts, lengths)
    verdicts = commit(group, forward)
    made = make_rounds(group, verdicts, drafts, lengths)
    if group.schedule is not None:
        width = forward.tokens.shape[-1]
        group.schedule.learn(candidates(group), made, width, group.timer.seconds)
    return made


def plain_rounds(group: Group, more: bool = True) -> list[Round | None]:
    """Decode one token; if the next step is plain too, it starts before this one is read.

    Args:
        group: the requests.
        more: see `next_rounds`.

    Returns:
        See `drafted_rounds`.
    """
    started = group.next_step
    forward = started or start_verify(group)
    group.next_step = None
    for state in group.states:
        state.parked = max(state.parked - 1, 0)
    if more and _next_is_plain(group):
        group.next_step = start_verify(group, after=forward)
    group.timer.steady = bool(started and group.next_step)
    made = make_rounds(group, commit(group, forward))
    if group.schedule is not None and group.timer.steady:
        group.schedule.learn(candidates(group), made, PLAIN, group.timer.seconds)
    return made


def _next_is_plain(group: Group) -> bool:
    """Whether no request will end or draft after this step, as far as is known."""
    # A forward that ends a request, or behind which caches are quantized, starts no other one.
    rows = group.engine.target.cache_settings.rows_until_quantized
    if any(rows(s.anchor_index, s.remaining) == 1 or s.error for s in group.states):
        return False
    if group.schedule is not None and group.engine.drafter is not None:
        return group.schedule.parked > 0
    return all(
        (state.speculation is None or state.parked) and not state.copy_waits
        for state in group.states
    )


def make_rounds(
    group: Group,
    verdicts: Sequence[Verdict | None],
    drafts: Sequence[Draft | None] | None = None,
    lengths: Sequence[int] | None = None,
) -> list[Round | None]:
    """The rounds of verdicts that were just committed; without drafts, of a plain step."""
    count = len(group.states)
    made: list[Round | None] = [None] * count
    parts = zip(
        group.states, verdicts, drafts or [None] * count, lengths or [0] * count, strict=True
    )
    for i, (state, verdict, draft, length) in enumerate(parts):
        if verdict is None or state.error is not None:
            continue
        with group.own_code(state):
            proposer = (LOOKUP if state.copy else DRAFTER) if draft else ""
            round_ = make_round(group.timer, verdict, proposer, draft, length)
            round_ = cut_at_stop(round_, state.stop)
            # After a stop token a logits processor may rightly leave no token.
            first = state.anchor_index - len(round_.tokens) + 1
            refuse_faults(group.engine, verdict.faults[: len(round_.tokens)], first)
            made[i] = round_
    return made


def make_round(
    timer: RoundTimer,
    verdict: Verdict,
    proposer: str = "",
    draft: Draft | None = None,
    length: int = 0,
) -> Round:
    """The `Round` of a verdict that was just committed; without a draft, of a plain step."""
    return Round(
        verdict.tokens,
        drafted=draft.tokens.size if draft else 0,
        proposer=proposer,
        scheduled=length,
        accepted=verdict.accepted,
        confidence=verdict.confidence,
        seconds=timer.seconds,
        steady=timer.steady,
        host_seconds=timer.host_seconds,
        rollback_seconds=timer.rollback_seconds,
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
