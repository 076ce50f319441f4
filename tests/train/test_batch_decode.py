"""Batched decoding: every row as if it were alone, and drawn from the right distribution."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from helpers.families import CONFIGS
from helpers.families import family as random_family
from helpers.slow_cases import some_slow
from helpers.tiny_models import VOCAB, random_tokens, tiny
from helpers.toys import HORIZON, PROMPT, exact, misfit, toy_target
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import KVCache

import dspark_mlx
from dspark_mlx.errors import InputError
from dspark_mlx.train.data.batch_decode import Job, batch_decode, choose
from dspark_mlx.train.data.padded_cache import padded_caches

LENGTHS = (1, 9, 4, 30, 2, 17, 9)


def greedy_alone(model, prompt, count, stops=()):
    """mlx-lm's own greedy decoding of one sequence, cut after the first stop token."""
    tokens = []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=count):
        tokens.append(int(token))
        if tokens[-1] in stops:
            break
    return tokens


def prompts():
    return [random_tokens(length, seed=length + i).tolist() for i, length in enumerate(LENGTHS)]


FAMILIES = ("llama", "qwen3", "gemma3_text", "gpt_oss", "qwen3_moe")


@pytest.mark.parametrize("family", some_slow(FAMILIES, ("llama", "gemma3_text", "qwen3_moe")))
def test_a_greedy_row_is_what_it_is_alone(family, monkeypatch):
    """Rows that see their padding or each other, wrong positions, a window off by the padding, and
    rows mixed up when ended ones are dropped (limits differ, so that it happens several times);
    also with shapes rounded up."""
    model = tiny(family)
    limits = [40, 3, 60, 20, 35, 1, 8]
    jobs = [Job(p, n, 0.0) for p, n in zip(prompts(), limits, strict=True)]
    alone = [greedy_alone(model, job.prompt, job.max_tokens) for job in jobs]
    for rows, rounded in ((7, False), (3, False), (7, True)):
        monkeypatch.setattr(
            "dspark_mlx.train.data.batch_prefill._plans_shapes", lambda r=rounded: r
        )
        assert batch_decode(model, jobs, (), mx.random.key(0), rows) == alone


# Refused as targets, see docs/targets.md.
NOT_DECODED = ("muse_spark", "olmo", "phi3small", "plamo3")
SOME = ("qwen3_5", "lfm2", "nemotron_h", "mamba2", "falcon_h1", "ministral3", "gpt_bigcode")


@pytest.mark.parametrize("name", some_slow(sorted({*CONFIGS} - {*NOT_DECODED}), SOME))
def test_a_row_of_any_family_is_what_it_is_alone(name, monkeypatch):
    """States that padding or another row got into; rows mixed up when ended ones are dropped while
    prompts are still being read."""
    model = random_family(name)
    limits = [12, 3, 16, 5, 2, 1, 8]
    jobs = [Job(p[:14], n, 0.0) for p, n in zip(prompts(), limits, strict=True)]
    alone = [greedy_alone(model, job.prompt, job.max_tokens) for job in jobs]
    assert len({token for text in alone for token in text}) > 1
    for rows, rounded in ((7, False), (3, True)):
        monkeypatch.setattr(
            "dspark_mlx.train.data.batch_prefill._plans_shapes", lambda r=rounded: r
        )
        assert batch_decode(model, jobs, (), mx.random.key(0), rows) == alone


@pytest.mark.slow
def test_the_built_in_target_row_by_row(monkeypatch):
    """Rows of a real vocabulary and depth, whose texts part where a position is off by one."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    decoder = dspark_mlx.load(drafter=False, precision="float32")
    questions = (
        "Name a colour.",
        "What is 12 times 12? Think step by step.",
        "Why is the sky blue?",
    )
    ids = [decoder.encode([{"role": "user", "content": q}]) for q in questions]
    model = decoder.engine.target.model
    jobs = [Job(prompt, 48, 0.0) for prompt in ids]
    written = batch_decode(model, jobs, decoder.stop_tokens, mx.random.key(0))
    assert written == [greedy_alone(model, p, 48, decoder.stop_tokens) for p in ids]


def test_stop_tokens_end_rows_of_their_own():
    """Tokens after the stop token, or a row that ends another."""
    model = tiny("llama")
    stops = {5, 17, 33, 40, 61, 2, 9}
    jobs = [Job(p, 50, 0.0) for p in prompts()]
    seen = []
    written = batch_decode(model, jobs, stops, mx.random.key(0), 4, lambda *a: seen.append(a))
    assert written == [greedy_alone(model, job.prompt, 50, stops) for job in jobs]
    assert len({len(text) for text in written}) > 2
    ended, tokens = np.sum(seen, axis=0)
    assert (ended, tokens) == (len(jobs), sum(map(len, written)))


def test_prompts_of_one_token(monkeypatch):
    """No prefill at all: caches that nothing was written to, yet with rows to drop."""
    monkeypatch.setattr("dspark_mlx.train.data.batch_prefill._plans_shapes", lambda: True)
    for name in ("llama", "gemma3_text"):
        model = tiny(name)
        jobs = [Job([token], 5, 0.0) for token in (3, 8, 20)]
        written = batch_decode(model, jobs, (), mx.random.key(0))
        assert written == [greedy_alone(model, job.prompt, 5) for job in jobs]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_padding_sees_itself(family):
    """Tokens that see nothing, whose attention is NaN on some devices; other tokens that see more
    or less than in mlx-lm's masks."""
    model = tiny(family)
    padding = [0, 5, 20, 24]
    ours = padded_caches(model, padding)
    start = 0
    for columns in (8, 8, 8, 1, 1):
        for cache in ours:
            mask = np.array(cache.make_mask(columns))[:, 0]
            theirs = np.array(type(cache).__mro__[1].make_mask(cache, columns))[:, 0]
            assert mask.any(axis=-1).all() or columns == 1
            for row, pad in enumerate(padding):
                real = np.arange(start, start + columns) >= pad
                np.testing.assert_array_equal(mask[row][real], theirs[row][real])
        model(mx.zeros((len(padding), columns), dtype=mx.int32), cache=ours)
        start += columns


def test_long_prompts_are_read_in_parts(monkeypatch):
    """A prefill that loses or repeats a column where its parts meet."""
    monkeypatch.setattr("dspark_mlx.train.data.batch_prefill._PREFILL", 28)
    model = tiny("llama")
    jobs = [Job(p, 10, 0.0) for p in prompts()]
    written = batch_decode(model, jobs, (), mx.random.key(0))
    assert written == [greedy_alone(model, job.prompt, 10) for job in jobs]


def test_sampled_rows_have_the_targets_distribution():
    """Noise shared by rows or steps, a wrong temperature, or a biased draw."""
    target = toy_target(6)

    def at(temperature):
        def distribution(logits, before):
            p = np.exp((logits - logits.max()) / temperature)
            return p / p.sum()

        return exact(target, distribution)

    for temperature in (1.0, 0.6):
        with target.untapped():
            jobs = [Job(PROMPT, HORIZON, temperature)] * 10_000
            written = batch_decode(target.model, jobs, (), mx.random.key(5), 5000)
        counts = np.zeros((6,) * HORIZON, dtype=np.int64)
        np.add.at(counts, tuple(np.array(written).T), 1)
        assert misfit(counts, at(temperature)) < 1
        assert misfit(counts, at(temperature * 1.2)) > 1
    target.close()


def test_temperatures_are_of_their_rows():
    """Rows of a batch that share one temperature."""
    logits = mx.array([[0.0, 1.0, 0.0]] * 3000)
    temperatures = mx.array([[0.0], [0.5], [2.0]] * 1000)
    margins = mx.full((3000, 1), mx.inf)
    drawn = np.array(choose(logits, temperatures, margins, mx.random.key(1))).reshape(1000, 3)
    shares = (drawn == 1).mean(axis=0)
    for share, temperature in zip(shares, (0.01, 0.5, 2.0), strict=True):
        p = 1 / (1 + 2 * np.exp(-1 / temperature))
        assert abs(share - p) < 5 * np.sqrt(p * (1 - p) / 1000) + 1e-9


def test_tokens_below_min_p_are_never_drawn():
    """A limit on logits that forgets the temperature, or that greedy rows trip over."""
    model = tiny("llama")
    prompt = random_tokens(9).tolist()
    logits = model(mx.array([prompt]))[0, -1]
    for temperature in (1.0, 2.0):
        p = np.array(mx.softmax(logits / temperature))
        allowed = set(np.flatnonzero(p >= 0.3 * p.max()).tolist())
        written = batch_decode(
            model, [Job(prompt, 1, temperature, 0.3)] * 500, (), mx.random.key(2), 500
        )
        assert {text[0] for text in written} == allowed and 1 < len(allowed) < VOCAB
    jobs = [Job(prompt, 8, 0.0, 0.3), Job(prompt, 8, 0.0)]
    assert batch_decode(model, jobs, (), mx.random.key(2)) == [greedy_alone(model, prompt, 8)] * 2


def test_a_key_decides_what_is_written():
    """Randomness of the process: a killed run that goes on with other content."""
    model = tiny("llama")
    jobs = [Job(p, 12, 1.0) for p in prompts()]
    first = batch_decode(model, jobs, (), mx.random.key(3), 4)
    mx.random.seed(99)
    assert batch_decode(model, jobs, (), mx.random.key(3), 4) == first
    assert batch_decode(model, jobs, (), mx.random.key(4), 4) != first


def test_what_cannot_be_decoded_is_refused():
    """An empty row, or caches of which nobody knows how rows are dropped."""

    class OwnCache(KVCache):
        pass

    model = tiny("llama")
    with pytest.raises(InputError, match="0 prompt tokens"):
        batch_decode(model, [Job([], 3, 0.0)], (), mx.random.key(0))
    model.make_cache = lambda: [OwnCache()]
    with pytest.raises(InputError, match="OwnCache"):
        batch_decode(model, [Job([1], 3, 0.0)], (), mx.random.key(0))
    assert batch_decode(model, [], (), mx.random.key(0)) == []
    assert VOCAB > 61
