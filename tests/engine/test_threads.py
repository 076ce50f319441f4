"""One decoder in many threads: loaded in one, asked in another, each step in another, all at once.

An array of MLX that is not evaluated belongs to the thread that made it, and the taps of a model
are shared by its requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count, pairwise
from typing import Any

import mlx.core as mx
import pytest
from helpers.pairs import DRAFTERS, TARGET, golden, tokens_of
from helpers.slow_cases import some_slow
from helpers.tiny_models import FAMILIES, tiny
from helpers.toys import PROMPT, toy_engine, toy_target

from dspark_mlx.checkpoint.linear import arrays_of
from dspark_mlx.decoder import Decoder
from dspark_mlx.errors import InputError
from dspark_mlx.load import add_drafter, load
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.schedulers.make import make_scheduler
from dspark_mlx.targets import turns
from dspark_mlx.targets.tap import Target
from dspark_mlx.targets.turns import Turns, WiredMemory

VOCABULARY = 32
LONG = tuple(i % VOCABULARY for i in range(250))


def falling(tokens: mx.array, logits: mx.array) -> mx.array:
    """A processor that reads its tokens on the device."""
    return logits - 0.1 * tokens[-1].astype(mx.float32)


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "block": {"temperature": 1.0},
    "token": {"temperature": 0.8, "verification": "token", "top_p": 0.9},
    "reproducible": {"temperature": 1.0, "reproducible": True},
    "xtc": {"temperature": 1.0, "xtc_probability": 0.5, "min_p": 0.01},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.2},
    "processor": {"temperature": 1.0, "top_k": 9, "logits_processors": [falling]},
    "logprobs": {"temperature": 0.7, "logprobs": 3, "logit_bias": {3: 1.0}},
}


@contextlib.contextmanager
def pools(workers: int) -> Iterator[list[ThreadPoolExecutor]]:
    """Threads with a name each, ended as MLX asks for."""
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(workers)]
        yield made
        for pool in made:
            pool.submit(mx.clear_streams).result()


def elsewhere(do: Callable[[], Any]) -> Any:
    """Its result, computed in a thread of its own."""
    with pools(1) as (pool,):
        return pool.submit(do).result()


def made(head="vanilla", scheduler="full", target=None) -> Decoder:
    target = target or toy_target(VOCABULARY)
    return Decoder(toy_engine(target, make_scheduler(scheduler), head), TARGET, {})


def run(decoder: Decoder, prompt=PROMPT, max_tokens=20, **settings) -> list[int]:
    settings = {"seed": 3, **settings}
    return tokens_of(decoder.rounds(list(prompt), max_tokens, stop_tokens=(), **settings))


def step_by_step(decoder: Decoder, prompt=PROMPT, max_tokens=20, **settings) -> list[int]:
    """Each round in another of three threads."""
    rounds = decoder.rounds(list(prompt), max_tokens, stop_tokens=(), **{"seed": 3, **settings})
    with pools(3) as workers:
        found = []
        for i in count():
            done = workers[i % 3].submit(next, rounds, None).result()
            if done is None:
                break
            found.append(done)
    return tokens_of(found)


@pytest.mark.parametrize("head", ["vanilla", "gated", "rnn", "none", "eagle3"])
def test_a_pair_made_in_one_thread_decodes_in_others(head):
    """ "There is no Stream(cpu, 0) in current thread": arrays that were built and not evaluated."""
    decoder = elsewhere(lambda: made(head))
    for settings in ({}, {"temperature": 1.0}):
        want = run(decoder, **settings)
        assert elsewhere(lambda s=settings: run(decoder, **s)) == want


LOADED = [(name, kind) for name in (*DRAFTERS, None) for kind in ("float32", "float16")]
SOME = (*LOADED[::2], ("vanilla", "float16"))


@pytest.mark.parametrize("case", some_slow(LOADED, SOME), ids=str)
def test_a_pair_loaded_in_one_thread_decodes_in_others(case):
    name, precision = case
    source = False if name is None else golden(name)
    decoder = elsewhere(
        lambda: load(TARGET, source, "full", precision=precision, draft_vocabulary=40)
    )
    want = run(decoder, range(9))
    assert elsewhere(lambda: run(decoder, range(9))) == want
    assert step_by_step(decoder, range(9)) == want


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_model_keeps_is_found(family):
    """Rope frequencies, which are no parameters, left to the loading thread."""

    def build():
        model = tiny(family)
        mx.eval(arrays_of(model))
        return model

    model = elsewhere(build)
    assert mx.isfinite(model(mx.array([[1, 2, 3]]))).all().item()


@pytest.mark.parametrize("scaling", ["llama3", "yarn", "linear"])
def test_scaled_ropes_are_found(scaling):
    kinds = {
        "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "yarn": {},
        "linear": {},
    }
    rope = {"rope_type": scaling, "factor": 2.0, "original_max_position_embeddings": 64}

    def build():
        model = tiny("llama", rope_scaling={**rope, **kinds[scaling]})
        mx.eval(arrays_of(model))
        return model

    assert mx.isfinite(elsewhere(build)(mx.array([[1, 2, 3]]))).all().item()


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("drafting", [True, False])
def test_each_round_in_another_thread(name, drafting):
    """A request that fails in its second chunk: taps, prefixes, keys kept between rounds."""
    decoder = made() if drafting else made().plain()
    want = run(decoder, **SETTINGS[name])
    assert step_by_step(decoder, **SETTINGS[name]) == want


@pytest.mark.parametrize("scheduler", ["fixed:0", "fixed:1", "threshold:0.5"])
@pytest.mark.parametrize("head", ["rnn", "none", "eagle3"])
@pytest.mark.parametrize("name", some_slow(["greedy", "reproducible"], ["reproducible"]))
def test_schedules_that_leave_drafts_unread(scheduler, head, name):
    """What nothing of the round needed, a drafter's cache or the next noise, left unevaluated."""
    if head == "eagle3" and scheduler.startswith("threshold"):
        return
    decoder = made(head, scheduler)
    want = run(decoder, LONG, 16, **SETTINGS[name])
    assert step_by_step(decoder, LONG, 16, **SETTINGS[name]) == want


def test_a_draft_that_nothing_verifies():
    """A cut head, copied for a draft that nothing looked at, and used by a later one."""

    class EverySecond(FullScheduler):
        rounds = 0

        def admit(self, slot, seen):
            self.rounds += slot == 0
            return self.rounds % 2 == 0

    decoder = elsewhere(
        lambda: load(TARGET, golden("vanilla"), EverySecond(), draft_vocabulary=200)
    )
    drafter = decoder.engine.drafter
    drafter._confidence, drafter._config = None, replace(drafter.config, confidence="none")
    want = run(decoder.plain(), range(80, 120), 20)
    assert step_by_step(decoder, range(80, 120), 20) == want


@pytest.mark.parametrize("family", ["gemma3_text", "gpt_oss"])
def test_windows_roll_back_across_threads(family):
    """A rotating cache's rows cut off, and not evaluated."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": VOCABULARY}
    model = tiny(family, **sizes)
    mx.eval(model.parameters())
    decoder = made(target=Target(model, (-1, 0), family))
    want = run(decoder, max_tokens=40)
    assert step_by_step(decoder, max_tokens=40) == want


def test_a_coroutine_that_steps_in_threads():
    """An app that streams: asyncio.to_thread(next, rounds), several requests at once."""
    decoder = made()
    want = [run(decoder, temperature=1.0, sample=i) for i in range(4)]

    async def request(sample: int) -> list[int]:
        rounds = decoder.rounds(PROMPT, 20, stop_tokens=(), temperature=1.0, seed=3, sample=sample)
        found = []
        while (done := await asyncio.to_thread(next, rounds, None)) is not None:
            found.append(done)
        return tokens_of(found)

    async def all_of_them():
        return await asyncio.gather(*map(request, range(4)))

    assert asyncio.run(all_of_them()) == want


def in_threads(workers: int, requests: int) -> None:
    """Each thread decodes different requests on sides of one target; all must be right."""
    decoder = made()
    target = decoder.engine.target
    other = toy_engine(target.sharing((-1, 0), "toy"), FullScheduler(), "rnn", gamma=3)
    sides = [
        decoder,
        decoder.plain(),
        decoder.with_scheduler(make_scheduler("threshold:0.4")),
        decoder.with_engine(other, None),
    ]
    kinds = list(SETTINGS.values())
    jobs = [
        (sides[i % len(sides)], kinds[i % len(kinds)], (PROMPT, LONG[: 5 + i % 7])[i % 2], i % 5)
        for i in range(workers * requests)
    ]

    def do(job: int) -> list[int]:
        side, settings, prompt, sample = jobs[job]
        sample = sample if settings.get("temperature") else 0
        return run(side, prompt, 12, sample=sample, **settings)

    want = [do(job) for job in range(len(jobs))]
    with pools(workers) as all_workers:
        futures = [
            [pool.submit(do, i + workers * n) for n in range(requests)]
            for i, pool in enumerate(all_workers)
        ]
        for i, each in enumerate(futures):
            for n, future in enumerate(each):
                assert future.result() == want[i + workers * n]


def test_threads_at_once():
    """Taps of one request read as another's: KeyError, wrong shapes, an abort of the process."""
    in_threads(4, 6)


@pytest.mark.slow
def test_eight_threads_with_fifty_requests_each():
    in_threads(8, 50)


def test_a_drafter_loaded_while_others_decode(tmp_path):
    """A model whose layers are untapped under a running request."""
    decoder = load(TARGET, golden("vanilla"), "full")
    want = run(decoder, range(9), 60)
    with pools(3) as workers:
        running = [pool.submit(run, decoder, range(9), 60) for pool in workers[:2]]
        beside = workers[2].submit(add_drafter, decoder, golden("embedding_tap"), "full").result()
        assert [each.result() for each in running] == [want, want]
    assert run(beside, range(9), 60) == want
    assert run(decoder, range(9), 60) == want


def test_requests_interleave_in_one_thread():
    """A lock held across rounds, which one thread could never pass."""
    decoder = made()
    want = run(decoder)
    both = [decoder.rounds(PROMPT, 20, stop_tokens=()) for _ in range(2)]
    found: list[list[int]] = [[], []]
    while len(found[0]) < 20:
        for tokens, rounds in zip(found, both, strict=True):
            tokens += next(rounds).tokens
    assert found == [want, want]


def test_a_processor_may_decode_itself():
    """A round that waits for its own thread."""
    decoder = made()

    def asks(tokens, logits):
        (token,) = run(decoder, PROMPT, 1)
        return logits + 0.0 * token

    assert run(decoder, max_tokens=6, logits_processors=[asks]) == run(decoder, max_tokens=6)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_round_that_fails_lets_others_go_on(error):
    """A lock that nobody holds any more and nobody gives back."""
    decoder = made()
    want = run(decoder)

    def fails(tokens, logits):
        if tokens.size > len(PROMPT) + 2:
            raise error
        return logits

    with pytest.raises(error):
        run(decoder, logits_processors=[fails])
    assert elsewhere(lambda: run(decoder)) == want
    assert run(decoder) == want


@pytest.mark.parametrize("drafting", [True, False])
def test_a_request_is_closed_by_another_thread(drafting):
    decoder = made() if drafting else made().plain()
    want = run(decoder)
    for end in ("close", "collect"):
        rounds = decoder.rounds(PROMPT, 20, stop_tokens=())
        next(rounds), next(rounds)
        if end == "close":
            elsewhere(rounds.close)
            assert next(rounds, None) is None
        else:
            box = [rounds]
            del rounds
            elsewhere(lambda box=box: (box.clear(), gc.collect()))
        assert run(decoder) == want


def test_a_closed_target_is_named():
    """KeyError for a tap that nothing records any more."""
    decoder = made()
    rounds = decoder.rounds(PROMPT, 20, stop_tokens=())
    next(rounds)
    decoder.engine.target.close()
    with pytest.raises(InputError, match="toy: found a target that was closed"):
        next(rounds)


def test_turns_go_to_whoever_waits():
    """One thread that takes every turn because it asks first."""
    lock, order, started = Turns(), list[str](), threading.Barrier(2)

    def take(name: str) -> None:
        started.wait()
        for _ in range(50):
            with lock, lock:
                order.append(name)
                # Long enough for the other to ask.
                threading.Event().wait(0.001)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(take, "ab"))
    middle = order[5:-5]
    changes = sum(a != b for a, b in pairwise(middle))
    assert changes > 0.8 * len(middle)


def test_the_wired_limit_outlasts_the_first_request(monkeypatch):
    """The limit put back while another request runs, and a raised one left behind by the last."""
    events = []

    @contextlib.contextmanager
    def limit(model):
        events.append("raised")
        yield
        events.append("put back")

    monkeypatch.setattr(turns, "wired_limit", limit)
    wired = WiredMemory()
    first, second = wired.use(None), wired.use(None)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert events == ["raised"]
    elsewhere(lambda: second.__exit__(None, None, None))
    assert events == ["raised", "put back"]
