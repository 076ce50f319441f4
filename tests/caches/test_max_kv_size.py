"""`max_kv_size`: the first tokens and the newest ones, the same in blocks as row by row."""

from __future__ import annotations

import contextlib

import mlx.core as mx
import numpy as np
import pytest
from helpers.loadable import loadable
from helpers.pairs import tokens_of
from helpers.scripted import ScriptedDrafter
from helpers.tiny_models import random_tokens, tiny
from mlx_lm.models.cache import RotatingKVCache

import dspark_mlx
from dspark_mlx.benchmark.plain import plain_run
from dspark_mlx.caches import CacheSettings, new_caches
from dspark_mlx.caches.rotating import LimitedKVCache
from dspark_mlx.engine.rounds import rounds
from dspark_mlx.engine.state import Engine
from dspark_mlx.errors import InputError
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.targets.tap import Target

TOKENS = 40


def target_of(size: int | None) -> Target:
    return Target(tiny("qwen3"), (-1, 0), "qwen3", CacheSettings(max_kv_size=size))


def decoded(target: Target, prompt: list[int], chunk: int, drafter=None) -> list[int]:
    sampler = make_sampler(Sampling(), target.vocab_size)
    engine = Engine(target, drafter, FullScheduler())
    made = rounds(
        engine, prompt, max_tokens=TOKENS, stop_tokens=(), sampler=sampler, prefill_step_size=chunk
    )
    return tokens_of(made)


def prompt_of(length: int) -> list[int]:
    return np.array(random_tokens(length, seed=length)).tolist()


@pytest.mark.parametrize("size", [8, 16, 30])
@pytest.mark.parametrize(("length", "chunk"), [(3, 2048), (20, 7), (40, 2048)])
def test_tokens_are_those_of_mlx_lm(length, chunk, size):
    """Blocks that read other tokens than single rows do, before, at and long behind the window."""
    target, prompt = target_of(size), prompt_of(length)
    plain = plain_run(target, prompt, TOKENS, (), prefill_step_size=chunk).tokens
    assert decoded(target, prompt, chunk) == plain
    for wrong in (0.1, 0.7):
        drafter = ScriptedDrafter([*prompt, *plain], target.vocab_size, wrong)
        assert decoded(target, prompt, chunk, drafter) == plain, wrong


def test_the_mask_of_mlx_lm_is_not_enough(monkeypatch):
    """Blocks under mlx-lm's own mask, which forget the first tokens; tests that cannot see it."""
    target, prompt = target_of(8), prompt_of(20)
    plain = plain_run(target, prompt, TOKENS, (), prefill_step_size=7).tokens
    monkeypatch.setattr(
        "dspark_mlx.targets.tap.as_single_rows", lambda caches: contextlib.nullcontext()
    )
    drafter = ScriptedDrafter([*prompt, *plain], target.vocab_size, 0.1)
    assert decoded(target, prompt, 7, drafter) != plain
    assert plain != plain_run(target_of(None), prompt, TOKENS, (), prefill_step_size=7).tokens


@pytest.mark.parametrize("before", [2, 6, 8, 9, 30])
@pytest.mark.parametrize("kept", range(1, 6))
def test_rows_that_are_taken_back_leave_nothing(before, kept):
    """A rejected row in the window, or an older one that it pushed out for good."""
    target, tokens = target_of(8), iter(prompt_of(before + 30))
    rejecting, singly = target.new_caches(), target.new_caches()

    def row(caches, token: int) -> mx.array:
        return target(mx.array([token]), caches)[0][0]

    for _ in range(before):
        token = next(tokens)
        row(rejecting, token)
        row(singly, token)
    for _ in range(3):
        block = [next(tokens) for _ in range(5)]
        logits, _, rollback = target.verify(mx.array(block), rejecting)
        rollback.keep(kept)
        alone = mx.stack([row(singly, token) for token in block[:kept]])
        assert mx.allclose(logits[:kept], alone, rtol=1e-4, atol=1e-4).item()
        assert all(cache.keys.shape[2] <= 8 + 5 for cache in rejecting)
    token = next(tokens)
    assert mx.allclose(row(rejecting, token), row(singly, token), rtol=1e-4, atol=1e-4).item()


def test_positions_go_on():
    """Rope that starts anew where the window does."""
    target = target_of(8)
    caches = target.new_caches()
    target(random_tokens(30), caches)
    target(random_tokens(1), caches)
    assert {cache.offset for cache in caches} == {31}
    assert {(type(c), c.keep, c.max_size) for c in caches} == {(LimitedKVCache, 4, 8)}


def test_families_with_caches_of_their_own_ignore_it(tmp_path):
    """A window that is said to be kept and is not."""
    sliding = {
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "sliding_window": 32,
    }
    caches = new_caches(tiny("llama", **sliding), "x", CacheSettings(max_kv_size=8))
    assert RotatingKVCache in {type(cache) for cache in caches}
    assert LimitedKVCache not in {type(cache) for cache in caches}
    folder = loadable(tmp_path / "target")
    with pytest.warns(UserWarning, match="max_kv_size does nothing"):
        # mlx-lm's llama makes its caches itself.
        decoder = dspark_mlx.load(folder, drafter=False, max_kv_size=8)
    assert decoder.generate([5, 6], 4, stop_tokens=()) is not None


def test_bits_and_a_window_are_refused_together():
    """NotImplementedError of mlx-lm at the first token behind the start."""
    with pytest.raises(InputError, match="kv_bits with RotatingKVCache"):
        new_caches(tiny("qwen3"), "x", CacheSettings(kv_bits=4, max_kv_size=16))
