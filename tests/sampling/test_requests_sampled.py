"""Sampled requests through the loop: seeds, reproducibility, processors, log-probabilities."""

from __future__ import annotations

import itertools
import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from helpers.pairs import tokens_of, traces, with_scheduler
from helpers.reference_settings import no_repeats
from helpers.slow_cases import some_slow

from dspark_mlx import InputError
from dspark_mlx.caches import new_caches

TOKENS = 28
SETTINGS = {"temperature": 0.9, "top_p": 0.95, "seed": 5}


def prompt() -> list[int]:
    return traces("vanilla")[0]["prompt_ids"]


def sample(decoder, **settings) -> list[int]:
    return tokens_of(decoder.rounds(prompt(), TOKENS, stop_tokens=(), **{**SETTINGS, **settings}))


def test_a_seed_gives_one_text(pair):
    """A request's randomness that comes from anywhere but its seed."""
    decoder = pair("vanilla")
    first = sample(decoder)
    assert sample(decoder) == first
    assert sample(decoder, seed=6) != first
    assert sample(decoder, sample=1) != first
    assert sample(decoder, seed=None) != sample(decoder, seed=None)


def test_requests_do_not_share_randomness(pair):
    """Two requests that take turns, or a process that draws, changing each other's text."""
    decoder = pair("vanilla")
    alone = sample(decoder)
    turns = [decoder.rounds(prompt(), TOKENS, stop_tokens=(), **SETTINGS, sample=i) for i in (0, 1)]
    tokens: list[list[int]] = [[], []]
    for both in zip(*turns, strict=False):
        mx.random.normal((3,))
        for side, done in zip(tokens, both, strict=True):
            side.extend(done.tokens)
    assert tokens[0] == alone[: len(tokens[0])] and len(tokens[0]) > 5


def test_the_process_keeps_its_random_state(pair):
    """An application whose own draws change because text was sampled."""
    decoder = pair("vanilla")
    mx.random.seed(3)
    expected = mx.random.normal((4,)).tolist()
    mx.random.seed(3)
    sample(decoder, xtc_probability=0.5, repetition_penalty=1.2)
    assert mx.random.normal((4,)).tolist() == expected


REPRODUCIBLE: dict[str, dict[str, Any]] = {
    "plain": {},
    "filters": {"top_k": 7, "min_p": 0.02, "xtc_probability": 0.6},
    "penalties": {
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.1,
        "logits_processors": (no_repeats,),
    },
    "greedy drafts": {"draft_temperature": 0.0},
}
CASES = list(itertools.product(("vanilla", "rnn", "dflash"), REPRODUCIBLE))
SOME = (*CASES[:4], ("rnn", "plain"), ("dflash", "plain"))


@pytest.mark.parametrize("case", some_slow(CASES, SOME), ids=str)
def test_a_reproducible_text_does_not_depend_on_drafts(pair, case):
    """Noise or a coin that belongs to a round instead of its position."""
    name, settings = case
    decoder, settings = pair(name), {**REPRODUCIBLE[settings], "reproducible": True}
    plain = sample(decoder.plain(), **settings)
    assert sample(decoder, **settings) == plain
    assert sample(with_scheduler(decoder, "fixed:1"), **settings) == plain


def test_noise_runs_on_past_its_chunk(pair):
    """Keys of positions past 256 that repeat, or fail."""
    decoder = pair("vanilla")
    settings = {**SETTINGS, "reproducible": True, "temperature": 2.0, "top_p": 1.0}
    start = (prompt() * 40)[:250]
    both = (decoder, decoder.plain())
    runs = [tokens_of(each.rounds(start, 30, stop_tokens=(), **settings)) for each in both]
    assert runs[0] == runs[1] and len(set(runs[0])) > 20


def test_coupled_drafts_are_accepted(pair):
    """The same noise on both sides, without which far fewer drafts survive."""
    decoder, settings = pair("vanilla"), {"temperature": 1.0, "reproducible": True}

    def accepted(**more) -> int:
        runs = [
            decoder.rounds(prompt(), 30, stop_tokens=(), seed=seed, **settings, **more)
            for seed in range(6)
        ]
        return sum(done.accepted for rounds in runs for done in rounds)

    assert accepted() > 1.5 * accepted(draft_temperature=1e4)


def test_processors_see_the_true_prefix(pair):
    """A row judged by a prefix that lacks its drafts, or has those of another row."""
    decoder, seen = pair("vanilla"), []

    def spy(tokens: mx.array, logits: mx.array) -> mx.array:
        assert logits.shape == (1, 512) and logits.dtype == mx.float32
        seen.append(tuple(map(int, tokens)))
        return logits

    tokens = sample(decoder, logits_processors=(spy,))
    text = (*prompt(), *tokens)
    assert all(prefix[: len(prompt())] == tuple(prompt()) for prefix in seen)
    assert {text[:n] for n in range(len(prompt()), len(text))} <= set(seen)
    assert tokens == sample(decoder)


def test_a_greedy_text_keeps_to_its_processors(pair):
    """Penalties that only sampling knows."""
    decoder = pair("vanilla")
    settings = {"temperature": 0.0, "top_p": 1.0, "seed": None}
    tokens = sample(decoder, **settings, logits_processors=(no_repeats,), banned_tokens=(7,))
    assert tokens == sample(
        decoder.plain(), **settings, logits_processors=(no_repeats,), banned_tokens=(7,)
    )
    assert 7 not in tokens
    assert all(a != b for a, b in itertools.pairwise(tokens))


def test_processors_that_leave_nothing_are_an_error(pair):
    """NaN chosen as if it were a token."""
    rounds = pair("vanilla").rounds(
        prompt(), 20, logits_processors=(lambda tokens, logits: logits - mx.inf,), temperature=1.0
    )
    with pytest.raises(InputError, match="logits_processors: found no token left"):
        list(rounds)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"reproducible": True}])
def test_logprobs_are_the_targets(pair, settings):
    """Log-probabilities of another row, of the drafter, or after the filters."""
    decoder = pair("vanilla")
    rounds = list(
        decoder.rounds(
            prompt(), 30, stop_tokens=(), logprobs=3, banned_tokens=(9,), **{**SETTINGS, **settings}
        )
    )
    assert any(done.accepted for done in rounds)
    text = prompt() + tokens_of(rounds)
    target = decoder.engine.target
    logits, _ = target(mx.array(text), new_caches(target.model, "target"))
    logits[:, 9] = -mx.inf
    expected = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))[len(prompt()) - 1 :]
    reports = [one for done in rounds for one in done.logprobs]
    assert [one.token for one in reports] == tokens_of(rounds)
    for one, row in zip(reports, expected, strict=False):
        assert one.logprob == pytest.approx(row[one.token], abs=1e-3)
        best = np.argsort(-row)[:3]
        assert [token for token, _ in one.top] == best.tolist()
        assert [value for _, value in one.top] == pytest.approx(row[best].tolist(), abs=1e-3)


def test_a_stop_token_ends_a_sampled_request(pair):
    """Tokens or log-probabilities behind the stop token."""
    decoder = pair("vanilla")
    stop = sample(decoder)[11]
    rounds = list(decoder.rounds(prompt(), 40, stop_tokens=(stop,), logprobs=0, **SETTINGS))
    tokens = tokens_of(rounds)
    assert tokens[-1] == stop and stop not in tokens[:-1]
    assert all(len(done.logprobs) == len(done.tokens) for done in rounds)


BAD = [
    ({"xtc_probability": 1.5}, "xtc_probability", "from 0 to 1"),
    ({"xtc_threshold": 0.7}, "xtc_threshold", "from 0 to 0.5"),
    ({"repetition_penalty": -1}, "repetition_penalty", "0, or from 1e-6"),
    ({"repetition_context_size": 0}, "repetition_context_size", "1 or more"),
    ({"presence_penalty": math.nan}, "presence_penalty", "finite"),
    ({"frequency_penalty": math.inf}, "frequency_penalty", "finite"),
    ({"logit_bias": {3: math.inf}}, "logit_bias of token 3", "finite"),
    ({"logit_bias": {"3": 1.0}}, "logit_bias", "a whole number"),
    ({"logit_bias": {512: 1.0}}, "logit_bias", "from 0 to 511"),
    ({"logit_bias": [3]}, "logit_bias", "token ids with numbers"),
    ({"banned_tokens": (600,)}, "banned_tokens", "from 0 to 511"),
    ({"banned_tokens": tuple(range(512))}, "banned_tokens", "at least one"),
    ({"banned_tokens": (3,), "logit_bias": {3: 1.0}}, "logit_bias", "may be chosen"),
    ({"repetition_penalty": 0.8, "presence_penalty": 1.0}, "presence_penalty", "both"),
    ({"repetition_penalty": 1.2, "frequency_penalty": -1.0}, "frequency_penalty", "both"),
    ({"logprobs": -1}, "logprobs", "0 or more"),
    ({"logprobs": 600}, "logprobs", "at most the vocabulary"),
    ({"draft_temperature": -1.0, "temperature": 1.0}, "draft_temperature", "0 or more"),
    ({"draft_temperature": 0.5}, "draft_temperature", "nothing is sampled"),
    ({"verification": "fast"}, "verification", "block or token"),
    ({"verification": "token", "reproducible": True}, "verification", "one of the two"),
    ({"reproducible": 1}, "reproducible", "True or False"),
    ({"logits_processors": (3,)}, "logits_processors", "functions"),
    ({"min_tokens_to_keep": 0}, "min_tokens_to_keep", "1 or more"),
    ({"sample": 1}, "sample", "0 where temperature is 0"),
    ({"temprature": 1.0}, "temprature", "Did you mean temperature?"),
]


@pytest.mark.parametrize("settings, where, expected", BAD, ids=lambda v: str(v)[:40])
def test_a_bad_setting_is_named(pair, settings, where, expected):
    """A setting that is ignored, or fails in the middle of a text."""
    with pytest.raises(InputError) as error:
        pair("vanilla").rounds(prompt(), **settings)
    assert error.value.where == where and expected in str(error.value)
