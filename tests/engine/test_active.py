"""Requests that decode together against each of them alone, token for token in float32.

The random drafters are wrong often and right sometimes, so that rounds keep different numbers of
rows.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from helpers.families import family
from helpers.hand_made import hand_made_profile
from helpers.scripted import ScriptedDrafter
from helpers.slow_cases import some_slow
from helpers.tiny_models import random_tokens, tiny
from helpers.toys import engine_of, toy_pair

from dspark_mlx.caches import CacheSettings
from dspark_mlx.calibration.sts import Calibration
from dspark_mlx.engine.active import ActiveRequests
from dspark_mlx.engine.rounds import rounds
from dspark_mlx.engine.state import Engine
from dspark_mlx.errors import InputError
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers.auto import AutoScheduler
from dspark_mlx.schedulers.make import make_scheduler
from dspark_mlx.schedulers.memory import PairMemory
from dspark_mlx.targets.batch_check import runs_in_batches
from dspark_mlx.targets.tap import Target
from dspark_mlx.types import Round

MODELS = {
    "full attention": lambda: tiny("llama"),
    "sliding window and experts": lambda: tiny("gpt_oss"),
    "delta net": lambda: family("qwen3_5"),
    "state space": lambda: family("nemotron_h"),
    "experts": lambda: tiny("qwen3_moe"),
}


def falling(tokens: mx.array, logits: mx.array) -> mx.array:
    """A processor that reads its tokens on the device."""
    return logits - 0.1 * tokens[-1].astype(mx.float32)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 1},
    {"temperature": 0.9, "seed": 2, "reproducible": True},
    {"repetition_penalty": 1.3, "presence_penalty": 0.2},
    {"temperature": 0.8, "seed": 3, "verification": "token", "top_p": 0.9},
    {"temperature": 1.0, "seed": 4, "top_k": 9, "logits_processors": [falling]},
    {"temperature": 0.7, "seed": 5, "logprobs": 3, "logit_bias": {3: 1.0}},
    {"temperature": 1.0, "seed": 6, "xtc_probability": 0.5, "min_p": 0.01},
]
PROMPTS = [[(5 * i + 3 * j * j + 1) % 60 for j in range(2 + 5 * i % 23)] for i in range(8)]
TOKENS = [17, 30, 9, 24, 1, 12, 33, 20]


def arguments(engine: Engine, i: int, max_tokens: int | None = None, stop=()) -> dict[str, Any]:
    vocabulary = engine.target.vocab_size
    sampler = make_sampler(Sampling(**SETTINGS[i % 8]), vocabulary, len(PROMPTS[i % 8]))
    return {
        "max_tokens": max_tokens or TOKENS[i % 8],
        "stop_tokens": stop,
        "sampler": sampler,
        "prefill_step_size": 4 + i,
    }


def bare(done: Round) -> tuple:
    """A round without its times; logarithms may differ in their last bits."""
    close = [(p.token, round(p.logprob, 3)) for p in done.logprobs]
    return done.tokens, done.drafted, done.scheduled, done.accepted, close


def alone(engine: Engine, i: int, **changes) -> list[tuple]:
    return [
        bare(done) for done in rounds(engine, PROMPTS[i % 8], **arguments(engine, i, **changes))
    ]


@pytest.fixture(scope="module", params=some_slow(MODELS, tuple(MODELS)[:3]))
def target(request):
    target = Target(MODELS[request.param](), (-1, 0), request.param)
    yield target
    target.close()


def together(engine: Engine, order, every: int = 2, **changes) -> dict[int, list[tuple]]:
    """The rounds of requests of which one joins every few steps, each removed when it ends."""
    active, waiting = ActiveRequests(engine), list(order)
    numbers: dict[Any, int] = {}
    made: dict[int, list[tuple]] = {i: [] for i in order}
    steps = 0
    while waiting or numbers:
        if waiting and steps % every == 0:
            i = waiting.pop(0)
            numbers[active.add(PROMPTS[i % 8], **arguments(engine, i, **changes))] = i
        steps += 1
        for request, done in active.step():
            assert isinstance(done, Round), done
            made[numbers[request]].append(bare(done))
            if request.ended:
                active.remove(request)
                del numbers[request]
    assert len(active) == 0
    return made


@pytest.mark.parametrize("scheduler", some_slow(["full", "threshold:0.4"], ["threshold:0.4"]))
def test_every_request_gets_what_it_gets_alone(target, scheduler):
    """Rows of one request in another's caches, masks, verdicts, noise or draft vocabulary."""
    engine = toy_pair(target, make_scheduler(scheduler))
    assert runs_in_batches(target)
    made = together(engine, range(8))
    accepted = sum(done[3] for each in made.values() for done in each)
    assert accepted > 5
    for i in range(8):
        assert made[i] == alone(engine, i), SETTINGS[i]


HEADS = ("gated", "rnn", "none", "eagle3", "dflash2", "dspine", "xpress")


@pytest.mark.parametrize("head", some_slow(HEADS, ("rnn", "eagle3", "dflash2", "xpress")))
def test_every_head_and_method(head):
    target = Target(tiny("llama"), (-1, 0), "llama")
    engine = toy_pair(target, make_scheduler("full"), head)
    made = together(engine, range(4), every=1)
    assert all(made[i] == alone(engine, i) for i in range(4))
    target.close()


@pytest.mark.parametrize("window", [0, 8])
def test_a_window_of_the_drafter(window):
    """Contexts whose oldest rows were dropped before they joined, or are in the batch."""
    target = Target(tiny("llama"), (-1, 0), "llama")
    config = toy_pair(target, make_scheduler("full")).drafter.config
    engine = engine_of(target, make_scheduler("full"), config.with_window(window or 400))
    prompts = [random_tokens(n, seed=n).tolist() for n in (290, 3, 255)]
    active, made, want = ActiveRequests(engine), {}, []
    for prompt in prompts:
        given = {**arguments(engine, 1, max_tokens=20), "prefill_step_size": 200}
        want.append([bare(done) for done in rounds(engine, prompt, **given)])
        given["sampler"] = arguments(engine, 1)["sampler"]
        made[active.add(prompt, **given)] = []
    held = 0
    while len(active):
        for request, done in active.step():
            made[request].append(bare(done))
            if request.ended:
                active.remove(request)
        if active._batch:
            held = max(active._batch._contexts._caches[0]._rows.lengths)
    assert list(made.values()) == want
    assert held < 40 if window else held > 260
    target.close()


def test_draft_vocabularies_that_differ(pair):
    """One request's tokens among another's drafts where the output depends on them."""
    engine = pair("vanilla", draft_vocabulary=100).engine
    made = together(engine, range(8), every=1)
    for i in range(8):
        want, settings = alone(engine, i), SETTINGS[i]
        if settings.get("temperature") and not settings.get("reproducible"):
            assert made[i] == want, settings
        # Others share one vocabulary, so that they may draft more than alone.
        assert [t for done in made[i] for t in done[0]] == [t for done in want for t in done[0]]


@pytest.mark.parametrize("start, together_", [(0, True), (20, False)])
def test_quantized_caches(start, together_):
    """Caches of which some are quantized and some are not yet, in one batch."""
    settings = CacheSettings(kv_bits=8, kv_group_size=32, quantized_kv_start=start)
    target = Target(tiny("llama", head_dim=32), (-1, 0), "llama", settings)
    assert runs_in_batches(target) is together_
    engine = toy_pair(target, make_scheduler("full"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = together(engine, (0, 2, 3), every=1)
    for i, each in made.items():
        text = [token for done in each for token in done[0]]
        assert text == [token for done in alone(engine, i) for token in done[0]]
    target.close()


def scheduled_as_a_whole(target: Target) -> tuple[Engine, PairMemory]:
    """An engine whose batches are scheduled by times, and what its requests teach."""
    speed = hand_made_profile([1.0 + 0.2 * rows for rows in range(8)], draft=0.1, plain=1.0)
    means = (0.8,) * 4
    memory = PairMemory(speed, Calibration((1.0,) * 4, 100, means, 0.5, (means,)))
    return replace(toy_pair(target, AutoScheduler(memory)), profile=speed), memory


def test_a_schedule_for_all_changes_no_greedy_text():
    """Widths and plain steps that a batch's schedule chooses, as times happen to be."""
    target = Target(tiny("llama"), (-1, 0), "llama")
    engine, _ = scheduled_as_a_whole(target)
    made = together(engine, (0, 2, 3, 8, 10, 11), every=1)
    assert any(done[1] for each in made.values() for done in each)
    for i, each in made.items():
        text = [token for done in each for token in done[0]]
        assert text == [token for done in alone(engine, i) for token in done[0]]
    target.close()


@pytest.mark.parametrize("count", [2, 3])
def test_a_plain_step_that_runs_is_committed_before_a_draft(count):
    """An answer that a stop token ends, and others whose next token is then written twice."""
    target = Target(tiny("llama"), (-1, 0), "llama")
    engine, _ = scheduled_as_a_whole(target)
    active = ActiveRequests(engine)
    requests = [active.add(PROMPTS[i], **arguments(engine, 0, max_tokens=30)) for i in range(count)]
    texts: dict[Any, list[int]] = {request: [] for request in requests}
    drafted = 0

    def step() -> None:
        nonlocal drafted
        for request, done in active.step():
            texts[request] += done.tokens
            drafted += done.drafted

    assert engine.batch_times is not None
    # Until plain steps were timed, the schedule asks for more of them.
    while not engine.batch_times.timed(count, plain=True):
        step()
    assert active._batch is not None and active._batch.next_step is not None
    active.remove(requests.pop())
    drafted = 0
    while not all(request.ended for request in requests):
        step()
    for i, request in enumerate(requests):
        sampler = arguments(engine, 0)["sampler"]
        given = {"max_tokens": 30, "stop_tokens": (), "sampler": sampler}
        want = [t for done in rounds(engine, PROMPTS[i], **given) for t in done.tokens]
        assert texts[request] == want
    assert drafted > 0
    active.close()
    target.close()


def test_what_a_batch_accepts_is_remembered():
    """Requests that decode together all day, and a pair that nothing is known of in the evening."""
    target = Target(tiny("llama"), (-1, 0), "llama")
    engine, memory = scheduled_as_a_whole(target)
    before = memory.prior(0.0).evidence
    active = ActiveRequests(engine)
    requests = [active.add(PROMPTS[i], **arguments(engine, 0, max_tokens=40)) for i in range(3)]
    judged, steps = [0, 0, 0], 0
    while all(not request.ended for request in requests):
        for request, done in active.step():
            judged[requests.index(request)] += min(done.accepted + 1, done.scheduled)
        steps += 1
    assert min(judged) > 0 and steps > 3 and active._batch is not None
    for request, count in zip(requests, judged, strict=True):
        active.remove(request)
        assert memory.prior(0.0).evidence == pytest.approx(min(before + count, 40))
    target.close()


def test_without_a_drafter(target):
    """A plain step that was started for requests of which one has left, or before one joined."""
    engine = Engine(target, None, make_scheduler("full"))
    want = {i: alone(engine, i) for i in range(8)}
    for every in (1, 3):
        assert together(engine, range(8), every) == want


def test_a_long_prompt_is_read_between_rounds():
    """Requests that stand still until somebody else's prompt was read to its end."""
    target = Target(tiny("llama"), (-1, 0), "llama")
    engine, read = Engine(target, None, make_scheduler("full")), []
    active = ActiveRequests(engine)
    running = active.add(PROMPTS[0], **arguments(engine, 0, max_tokens=30))
    active.step()
    prompt = random_tokens(1300, seed=1).tolist()
    given = {**arguments(engine, 0, max_tokens=3), "prefill_step_size": 2048}
    long = active.add(prompt, **given, progress=lambda done, _: read.append(done))
    made: dict[Any, list] = {running: [], long: []}
    while not long.ended:
        for request, done in active.step():
            made[request].append(bare(done))
    assert read == [0, 512, 1024, 1300]
    assert len(made[running]) >= 4 and made[running] == alone(engine, 0)[1 : len(made[running]) + 1]
    given["sampler"] = arguments(engine, 0)["sampler"]
    assert made[long] == [bare(done) for done in rounds(engine, prompt, **given)]
    active.close()
    target.close()


LIMITED = CacheSettings(max_kv_size=8)
QUANTIZED = CacheSettings(kv_bits=8, kv_group_size=32, quantized_kv_start=1)


@pytest.mark.parametrize("settings", [LIMITED, QUANTIZED], ids=["limited", "quantized"])
def test_prompts_are_cut_as_alone_where_texts_depend_on_it(settings):
    """A text that is another one because other prompts were read in the same step."""
    target = Target(tiny("qwen3", head_dim=32), (-1, 0), "qwen3", settings)
    engine, prompts = toy_pair(target, make_scheduler("full")), [[*range(3, n)] for n in (23, 40)]
    active, made, want, read = ActiveRequests(engine), {}, [], {}
    for prompt in prompts:
        given = {**arguments(engine, 0, max_tokens=12), "prefill_step_size": 12}
        want.append([t for done in rounds(engine, prompt, **given) for t in done.tokens])
        given["sampler"] = arguments(engine, 0)["sampler"]
        chunks = read[len(prompt)] = []
        request = active.add(prompt, **given, progress=lambda n, _, chunks=chunks: chunks.append(n))
        made[request] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while len(active):
            for request, done in active.step():
                made[request] += done.tokens
                if request.ended:
                    active.remove(request)
    assert read == {20: [0, 12, 20], 37: [0, 12, 24, 37]}
    assert list(made.values()) == want
    target.close()


class Knowing(ScriptedDrafter):
    """Proposes what plain decoding makes of the prompt that a request began with."""

    def __init__(self, texts, vocabulary: int, wrong: float) -> None:
        super().__init__((), vocabulary, wrong)
        self._texts = texts

    def draft(self, context, anchor, pick):
        texts = (text for text in self._texts if text[: len(context.tokens)] == context.tokens)
        self._text = next(texts)
        return super().draft(context, anchor, pick)


def test_drafts_that_are_right_most_of_the_time(target):
    """Rows of requests that keep one, some and all of them in the same round."""
    plain, texts = Engine(target, None, make_scheduler("full")), []
    for i in (0, 2, 3):
        texts.append(PROMPTS[i] + [t for done in alone(plain, i, max_tokens=60) for t in done[0]])
    drafter = Knowing(texts, target.vocab_size, wrong=0.2)
    engine = Engine(target, drafter, make_scheduler("full"))
    made = together(engine, (0, 2, 3), max_tokens=55)
    accepted = [done[3] for each in made.values() for done in each if done[1]]
    assert {0, 1, 2, 3, 4} <= set(accepted) and sum(accepted) > 2 * len(accepted)
    for i, text in zip((0, 2, 3), texts, strict=True):
        assert PROMPTS[i] + [t for done in made[i] for t in done[0]] == text[: len(PROMPTS[i]) + 55]


@pytest.mark.parametrize("isolates", [Exception, BaseException])
def test_sys_exit_in_a_processor(isolates):
    """An exit that is swallowed where it may be a signal's, or that takes other requests along."""
    target = Target(MODELS["full attention"](), (-1, 0), "t")
    engine = toy_pair(target, make_scheduler("full"))
    active = ActiveRequests(engine, isolates)

    def leaving(tokens: mx.array, logits: mx.array) -> mx.array:
        if tokens.size > len(PROMPTS[3]) + 6:
            raise SystemExit
        return logits

    sampler = make_sampler(Sampling(logits_processors=[leaving]), target.vocab_size)
    good = active.add(PROMPTS[1], **arguments(engine, 1))
    bad = active.add(PROMPTS[3], **arguments(engine, 3) | {"sampler": sampler})
    if isolates is Exception:
        with pytest.raises(SystemExit):
            while not bad.ended:
                active.step()
        assert good.ended and isinstance(good.state.error, SystemExit)
    else:
        made = []
        while not good.ended:
            made += [bare(done) for request, done in active.step() if request is good]
        assert isinstance(bad.state.error, SystemExit) and made == alone(engine, 1)
    active.close()
    target.close()


@pytest.mark.parametrize("name", some_slow(MODELS, ("delta net",)))
def test_requests_pause_leave_and_fail(name):
    """A soak: random joins, pauses and cancels, and requests whose processors raise."""
    target = Target(MODELS[name](), (-1, 0), name)
    engine = toy_pair(target, make_scheduler("full"))
    rng, active = np.random.default_rng(0), ActiveRequests(engine)
    want = {i: alone(engine, i) for i in range(8)}
    numbers: dict[Any, int] = {}
    made: dict[Any, list] = {}
    ends = {"whole": 0, "cancelled": 0, "failed": 0}

    def broken(tokens: mx.array, logits: mx.array) -> mx.array:
        if tokens.size > 30:
            raise KeyError("the request's own")
        return logits

    for step in range(80):
        if len(active) < 6 and step < 60:
            i = 8 if rng.random() < 0.3 else int(rng.integers(8))
            given = arguments(engine, i)
            if i == 8:
                sampling = Sampling(temperature=1.0, seed=step, logits_processors=[broken])
                given["sampler"] = make_sampler(sampling, target.vocab_size)
                given["max_tokens"] = 60
            request = active.add(PROMPTS[i % 8], **given)
            numbers[request], made[request] = i, []
        live = list(numbers)
        chosen = None if rng.random() < 0.6 else [r for r in live if rng.random() < 0.7]
        for request, done in active.step(chosen):
            if isinstance(done, Round):
                made[request].append(bare(done))
            else:
                assert isinstance(done, KeyError) and numbers[request] == 8
                ends["failed"] += 1
            if request.ended:
                ends["whole"] += isinstance(done, Round)
                active.remove(request)
                i = numbers.pop(request)
                assert i == 8 or made[request] == want[i]
        if live and rng.random() < 0.1:
            request = live[int(rng.integers(len(live)))]
            active.remove(request)
            i = numbers.pop(request, 8)
            ends["cancelled"] += 1
            assert i == 8 or made[request] == want[i][: len(made[request])]
    active.close()
    target.close()
    assert min(ends.values()) > 1, ends


def test_a_faulty_target_ends_the_request_that_sees_it(target):
    """One request's NaN refused as another's, or as all requests'."""
    engine = Engine(target, None, make_scheduler("full"))

    def nan(tokens: mx.array, logits: mx.array) -> mx.array:
        return logits * (mx.nan if tokens.size > 20 else 1.0)

    active = ActiveRequests(engine)
    given = arguments(engine, 0, max_tokens=30)
    given["sampler"] = make_sampler(Sampling(logits_processors=[nan]), target.vocab_size)
    bad, good = active.add(PROMPTS[1], **given), active.add(PROMPTS[2], **arguments(engine, 2))
    made, errors = [], []
    while not (bad.ended and good.ended):
        for request, done in active.step():
            if request is good:
                made.append(bare(done))
            elif not isinstance(done, Round):
                errors.append(done)
    assert made == alone(engine, 2)
    assert isinstance(errors[0], InputError) and "position 21" in errors[0].found, errors
    active.close()


def test_blocks_that_a_batch_has_no_room_for():
    """Windows of a batch that are asked for more rows than they hold, which ended every request."""
    target = Target(tiny("gpt_oss"), (-1, 0), "gpt_oss")
    engine = toy_pair(target, make_scheduler("full"), gamma=64)
    with pytest.warns(UserWarning, match="since the drafter proposes 64 tokens or more"):
        made = together(engine, range(2), every=1, max_tokens=70)
    assert all(made[i] == alone(engine, i, max_tokens=70) for i in range(2))
    target.close()


def test_a_target_that_cannot_be_batched_says_so_once():
    """Requests that are refused, or silently wrong, where caches have no batch."""
    target = Target(family("llama4"), (-1, 0), "llama4")
    engine = Engine(target, None, make_scheduler("full"))
    with pytest.warns(UserWarning, match="llama4: requests of this model run one after") as warned:
        made = together(engine, range(3), every=1)
    assert len(warned) == 1
    assert all(made[i] == alone(engine, i) for i in range(3))
    target.close()
