"""Requests that decode together leave kept prompts that are right for later ones."""

from __future__ import annotations

import pytest
from helpers.slow_cases import some_slow

from dspark_mlx.engine.active import ActiveRequests
from dspark_mlx.engine.state import Engine
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.types import Round

from .test_hits import EXACT, cold, engine_with, prompt_of, run, tokens_of

LENGTHS = ((9, 12), (20, 7), (14, 25))
"""Tokens of each request's prompt and answer: they join and leave one after the other."""
CASES = [(name, late) for name in EXACT for late in (False, True)]
SOME = (("full attention", True), ("sliding window", False), ("delta net and attention", True),
    ("list of states and keys", False), ("layers without attention", True), ("xpress", False),
    ("no drafter", True))  # fmt: skip


class InterruptedByHand(BaseException):
    """As Ctrl-C, which pytest would take for its own."""


def together(
    engine: Engine,
    prompts: list[list[int]],
    counts: list[int],
    late: bool = False,
    cancelled: int = 0,
) -> list[list[Round]]:
    """The rounds of requests that decode together.

    Args:
        engine: its kept prompts are used.
        prompts, counts: of each request.
        late: whether those that have ended are removed a step later than they could be.
        cancelled: number of steps after which the last request is removed; 0 for never.
    """
    active = ActiveRequests(engine)
    sampler = make_sampler(Sampling(), engine.target.vocab_size)
    added = [
        active.add(p, max_tokens=n, stop_tokens=(), sampler=sampler, prefill_step_size=8)
        for p, n in zip(prompts, counts, strict=True)
    ]
    made: dict[object, list[Round]] = {request: [] for request in added}
    steps = 0
    while len(active):
        ended = [request for request in added if request.ended]
        for request, done in active.step():
            assert isinstance(done, Round), done
            made[request].append(done)
        steps += 1
        for request in ended if late else [r for r in added if r.ended]:
            active.remove(request)
        if steps == cancelled:
            active.remove(added[-1])
    return [made[request] for request in added]


@pytest.mark.parametrize("case", some_slow(CASES, SOME), ids=str)
def test_second_turns_are_those_of_cold_runs(case):
    """Caches of before the batch, kept as those of the whole text."""
    name, late = case
    engine = engine_with(name)
    prompts = [prompt_of(length, seed=i) for i, (length, _) in enumerate(LENGTHS)]
    counts = [count for _, count in LENGTHS]
    for turn in range(2):
        rounds = together(engine, prompts, counts, late)
        assert any(done.cached_tokens for one in rounds for done in one) == bool(turn)
        for prompt, count, one in zip(prompts, counts, rounds, strict=True):
            assert tokens_of(one) == tokens_of(run(cold(engine), prompt, count))
            held = len(prompt) + count - 1
            more = [*prompt, *tokens_of(one), *prompt_of(5, seed=7)]
            alone = run(engine, more, 10)
            assert tokens_of(alone) == tokens_of(run(cold(engine), more, 10))
            assert alone[0].cached_tokens >= held
        prompts = [
            [*prompt, *tokens_of(one), *prompt_of(3, seed=8)]
            for prompt, one in zip(prompts, rounds, strict=True)
        ]
    engine.target.close()


@pytest.mark.parametrize("name", ["full attention", "delta net and attention", "no drafter"])
@pytest.mark.parametrize("cancelled", [7, 9])
def test_what_a_cancelled_request_leaves_is_right(name, cancelled):
    """A request that is taken out of a batch in the middle of its answer."""
    engine = engine_with(name)
    prompts = [prompt_of(length, seed=i) for i, (length, _) in enumerate(LENGTHS)]
    rounds = together(engine, prompts, [40, 40, 40], cancelled=cancelled)
    more = [*prompts[-1], *tokens_of(rounds[-1]), *prompt_of(5, seed=7)]
    alone = run(engine, more, 10)
    assert tokens_of(alone) == tokens_of(run(cold(engine), more, 10))
    assert alone[0].cached_tokens >= len(prompts[-1])
    engine.target.close()


@pytest.mark.parametrize("raised", [RuntimeError, InterruptedByHand])
@pytest.mark.parametrize("case", ["full attention", "delta net and attention"])
def test_nothing_is_kept_of_half_a_round(case, raised, monkeypatch):
    """Caches with rows that were not committed, which an assertion found when they were kept, or
    nothing did; requests whose round was lost going on without its tokens."""
    engine = engine_with(case)
    active = ActiveRequests(engine)
    sampler = make_sampler(Sampling(), engine.target.vocab_size)
    added = [
        active.add(prompt_of(6, seed=i), max_tokens=40, stop_tokens=(), sampler=sampler)
        for i in range(3)
    ]
    while any(request.reading for request in added):
        active.step()
    active.step()
    assert active._batch is not None and len(active._batch.states) == 3
    verify = type(engine.target).verify

    def fails(*args, **kwargs):
        verify(*args, **kwargs)
        raise raised

    with monkeypatch.context() as patched:
        patched.setattr(type(engine.target), "verify", fails)
        if raised is RuntimeError:
            # The third one leaves the batch in this step.
            ends = {request: type(done) for request, done in active.step(added[:2])}
            assert ends == dict.fromkeys(added, raised)
        else:
            with pytest.raises(raised):
                active.step()
    assert all(request.ended for request in added)
    active.close()
    assert engine.kept is not None and engine.kept.nbytes == 0
    prompts, counts = [prompt_of(6, seed=i) for i in range(2)], [12, 9]
    for prompt, count, one in zip(prompts, counts, together(engine, prompts, counts), strict=True):
        assert tokens_of(one) == tokens_of(run(cold(engine), prompt, count))
