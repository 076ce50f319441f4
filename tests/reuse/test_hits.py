"""A request that begins with a kept prompt decodes as one that read it, round by round."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.families import family
from helpers.pairs import tokens_of
from helpers.slow_cases import some_slow
from helpers.tiny_models import random_tokens, tiny
from helpers.toys import engine_of, example_config

from dspark_mlx.caches import CacheSettings
from dspark_mlx.drafters.gemma4_assistant.config import Gemma4AssistantConfig
from dspark_mlx.drafters.mtp.config import MTPConfig
from dspark_mlx.engine.rounds import rounds
from dspark_mlx.engine.state import Engine
from dspark_mlx.reuse.kept import KeptPrompts
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.targets.tap import Target

PLENTY = 1 << 30
QUANTIZED = CacheSettings(kv_bits=8, kv_group_size=32, quantized_kv_start=0)
HEAD = MTPConfig.EXAMPLE["arguments"] | {"hidden_size": 64}
ASSISTANT = {
    "arguments": Gemma4AssistantConfig.EXAMPLE["arguments"] | {"hidden_size": 64},
    "taps": (0, 1, 2),
    "sliding_layer": 1,
    "full_layer": 2,
}
PAIRS: dict[str, Any] = {
    "full attention": (lambda: tiny("llama"), {}),
    "sliding window": (lambda: tiny("gpt_oss"), {}),
    "delta net and attention": (lambda: family("qwen3_5"), {}),
    "convolution and attention": (lambda: family("lfm2"), {}),
    "list of states and keys": (lambda: family("falcon_h1"), {}),
    "layers without attention": (lambda: family("nemotron-nas"), {}),
    "drafter with a window": (lambda: tiny("llama"), {"window": 4}),
    "eagle3": (lambda: tiny("llama"), {"method": "eagle3", "steps": 3}),
    "mtp": (lambda: tiny("llama"), {"method": "mtp", "arguments": HEAD}),
    "xpress": (lambda: tiny("llama"), {"method": "xpress"}),
    "assistant": (lambda: tiny("llama"), {"method": "gemma4_assistant"} | ASSISTANT),
    "no drafter": (lambda: tiny("llama"), None),
    "no drafter, recurrent": (lambda: family("qwen3_5"), None),
    "quantized": (lambda: tiny("llama", head_dim=32), {"caches": QUANTIZED}),
}
CUTS = ("full attention", "layers without attention", "xpress", "no drafter")
EXACT = [name for name in PAIRS if name != "quantized"]
KINDS = ("full attention", "sliding window", "delta net and attention", "list of states and keys",
    "layers without attention", "drafter with a window", "xpress", "no drafter")  # fmt: skip
"""One of every kind of cache and of context; of the others every run tries a second turn alone."""


def engine_with(name: str, max_bytes: int = PLENTY) -> Engine:
    make, own = PAIRS[name]
    own = dict(own or {})
    caches = own.pop("caches", CacheSettings())
    target = Target(make(), (-1, 0), name, caches)
    kept = KeptPrompts(max_bytes, caches.quantized_kv_start if caches.kv_bits else 0)
    if PAIRS[name][1] is None:
        return Engine(target, None, FullScheduler(), kept=kept)
    method, hidden = own.pop("method", "dspark"), target.hidden_size
    sizes = {"hidden_size": hidden, "target_hidden_size": hidden, "owns_head": False}
    window = own.pop("window", None)
    if method == "dspark":
        own |= {"block_size": 4, "head": "vanilla", "head_rank": 8}
        own |= {"confidence": "hidden+markov"}
    config = example_config(target, method, **sizes, **own)
    if window:
        config = config.with_window(window)
    return replace(engine_of(target, FullScheduler(), config), kept=kept)


def cold(engine: Engine) -> Engine:
    return replace(engine, kept=None)


def run(engine: Engine, prompt, max_tokens=12, stop=(), **settings):
    sampler = make_sampler(Sampling(**settings), engine.target.vocab_size, len(prompt))
    return list(
        rounds(
            engine,
            prompt,
            max_tokens=max_tokens,
            stop_tokens=stop,
            sampler=sampler,
            prefill_step_size=8,
        )
    )


def prompt_of(count: int, seed: int = 3) -> list[int]:
    return np.array(random_tokens(count, seed)).tolist()


def same(warm, expected) -> None:
    """Equal round by round."""
    assert len(warm) == len(expected)
    for a, b in zip(warm, expected, strict=True):
        assert (a.tokens, a.drafted, a.accepted) == (b.tokens, b.drafted, b.accepted)
        assert a.confidence == pytest.approx(b.confidence, abs=1e-3)


@pytest.mark.parametrize("name", EXACT)
def test_the_second_turn_is_that_of_a_cold_run(name):
    """A row of the context or a state that is missing, doubled or of another place."""
    engine = engine_with(name)
    first = prompt_of(20)
    answer = tokens_of(run(engine, first))
    held = len(first) + len(answer) - 1
    second = [*first, *answer, *prompt_of(9, seed=4)]
    for settings in ({}, {"temperature": 0.8, "seed": 5}):
        expected = run(cold(engine), second, 24, **settings)
        warm = run(engine, second, 24, **settings)
        same(warm, expected)
        assert expected[0].cached_tokens == 0
        # The second time, its own prompt is kept too.
        assert warm[0].cached_tokens >= held
        held = len(second) - 1
    if engine.drafter is not None:
        assert (
            sum(len(r.confidence) > 0 for r in expected) or not engine.drafter.config.has_confidence
        )
    engine.target.close()


@pytest.mark.parametrize("name", some_slow(PAIRS, (*KINDS, "quantized")))
def test_a_text_goes_on_as_if_it_had_not_ended(name):
    """Caches that are kept otherwise than they were: the bits of quantised rows, say."""
    engine = engine_with(name)
    prompt = prompt_of(20)
    whole = tokens_of(run(cold(engine), prompt, 30))
    part = tokens_of(run(engine, prompt, 11))
    rest = run(engine, [*prompt, *part], 19)
    assert rest[0].cached_tokens == len(prompt) + len(part) - 1
    assert [*part, *tokens_of(rest)] == whole
    engine.target.close()


@pytest.mark.parametrize("name", some_slow(EXACT, KINDS))
def test_prompts_that_part_share_what_they_have_in_common(name):
    """A prefix that another request wrote into; a branch that is read as the other one."""
    engine = engine_with(name)
    system = prompt_of(17)
    prompts = [[*system, i, *prompt_of(6 + i, seed=20 + i)] for i in range(4)]
    expected = [run(cold(engine), prompt) for prompt in prompts]
    first = [run(engine, prompt) for prompt in prompts]
    again = [run(engine, prompt) for prompt in prompts]
    for a, b, c in zip(expected, first, again, strict=True):
        same(b, a)
        same(c, a)
    reused = [made[0].cached_tokens for made in first]
    # Where states cannot be cut back, the second request finds where it parts from the first.
    assert reused[2:] == [17, 17] and reused[0] == 0
    assert reused[1] == (17 if name in CUTS else 0)
    assert [made[0].cached_tokens for made in again] == [len(p) - 1 for p in prompts]
    engine.target.close()


@pytest.mark.parametrize("name", some_slow(EXACT, KINDS))
def test_two_requests_from_one_prefix_do_not_disturb_each_other(name):
    """mlx-lm's caches write in place: into the other request's arrays, or into the kept ones."""
    engine = engine_with(name)
    prompt = prompt_of(20)
    run(engine, prompt)
    settings = [{"temperature": 1.2, "seed": seed} for seed in range(3)]
    expected = [run(cold(engine), prompt, 16, **each) for each in settings]
    made = [
        rounds(
            engine,
            prompt,
            max_tokens=16,
            stop_tokens=(),
            sampler=make_sampler(Sampling(**each), engine.target.vocab_size, len(prompt)),
        )
        for each in settings
    ]
    found: list[list] = [[] for _ in made]
    going = True
    while going:
        going = False
        for one, taken in zip(made, found, strict=True):
            if (round_ := next(one, None)) is not None:
                going = True
                taken.append(round_)
    for a, b in zip(found, expected, strict=True):
        same(a, b)
        assert a[0].cached_tokens == len(prompt) - 1
    for each, b in zip(settings, expected, strict=True):
        same(run(engine, prompt, 16, **each), b)
    engine.target.close()


@pytest.mark.parametrize("name", some_slow(EXACT, KINDS))
def test_an_answer_that_a_stop_token_ends_is_kept_whole(name):
    """Rows behind the stop token in the states: the next turn begins at a wrong place, or at
    none."""
    engine = engine_with(name)
    for seed in range(2):
        prompt = prompt_of(12, seed=seed)
        free = tokens_of(run(cold(engine), prompt, 14))
        stop = free[7]
        answer = tokens_of(run(engine, prompt, 14, stop={stop}))
        assert answer == free[: free.index(stop) + 1]
        second = [*prompt, *answer, *prompt_of(5, seed=40)]
        warm = run(engine, second)
        same(warm, run(cold(engine), second))
        assert warm[0].cached_tokens >= len(prompt) + len(answer) - 1
    engine.target.close()


def test_a_request_that_is_left_early_is_kept():
    """Ctrl-C in a conversation; a stop string; a client that leaves."""
    engine = engine_with("delta net and attention")
    prompt = prompt_of(20)
    sampler = make_sampler(Sampling(), engine.target.vocab_size, len(prompt))
    made = rounds(engine, prompt, max_tokens=40, stop_tokens=(), sampler=sampler)
    answer = [*next(made).tokens, *next(made).tokens]
    made.close()
    second = [*prompt, *answer, 5, 6]
    warm = run(engine, second)
    same(warm, run(cold(engine), second))
    assert warm[0].cached_tokens >= len(prompt) + len(answer) - 1
    engine.target.close()
