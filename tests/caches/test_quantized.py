"""Quantised caches: the same tokens with a drafter as without, on both sides of the switch."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.families import family
from helpers.pairs import tokens_of
from helpers.scripted import ScriptedDrafter
from helpers.tiny_models import random_tokens, tiny
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from dspark_mlx.benchmark.plain import plain_run
from dspark_mlx.caches import CacheSettings, leaves, new_caches
from dspark_mlx.engine.rounds import rounds
from dspark_mlx.engine.state import Engine
from dspark_mlx.errors import InputError
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.targets.network import check_quantized
from dspark_mlx.targets.self_check import check_rollback, measure_gaps
from dspark_mlx.targets.tap import Target

PROMPT, TOKENS, VOCABULARY = 20, 32, 64
MODELS = {
    "llama": lambda: tiny("llama", head_dim=32),
    "qwen3": lambda: tiny("qwen3", head_dim=64),
    # Its attention is quantized, its recurrent states are not.
    "qwen3_5": lambda: family("qwen3_5"),
}
# From the start, in the prompt's second chunk, in the middle of the text, never.
STARTS = (0, 15, PROMPT + 7, 500)


def target_of(name: str, **settings: int) -> Target:
    model = MODELS[name]()
    return Target(model, (-1, 0), name, CacheSettings(kv_group_size=32, **settings))


def decoded(target: Target, prompt: list[int], drafter=None) -> list:
    sampler = make_sampler(Sampling(), target.vocab_size)
    engine = Engine(target, drafter, FullScheduler())
    made = rounds(
        engine, prompt, max_tokens=TOKENS, stop_tokens=(), sampler=sampler, prefill_step_size=8
    )
    return list(made)


def prompt_of(seed: int = 3) -> list[int]:
    return np.array(random_tokens(PROMPT, seed=seed)).tolist()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_mlx_lm(name, start):
    """A block that reads unquantised keys where plain decoding reads quantised ones; a rejected row
    that stays; a switch that a started step does not see."""
    target, prompt = target_of(name, kv_bits=4, quantized_kv_start=start), prompt_of()
    plain = plain_run(target, prompt, TOKENS, (), prefill_step_size=8).tokens
    assert tokens_of(decoded(target, prompt)) == plain
    for wrong in (0.1, 0.7):
        drafter = ScriptedDrafter([*prompt, *plain], target.vocab_size, wrong)
        done = decoded(target, prompt, drafter)
        assert tokens_of(done) == plain, wrong
        assert any(round_.accepted for round_ in done)
        assert any(round_.scheduled > round_.accepted for round_ in done)


@pytest.mark.parametrize("name", MODELS)
def test_the_bits_show_in_the_text(name):
    """Settings that nothing reads, with which every test here would pass."""
    texts = {
        tuple(tokens_of(decoded(target_of(name, quantized_kv_start=0, **bits), prompt_of())))
        for bits in ({}, {"kv_bits": 2})
    }
    assert len(texts) == 2


def test_blocks_end_where_the_cache_is_quantized():
    """Blocks that are not cut, or that stay short behind the switch."""
    start = PROMPT + 7
    target, prompt = target_of("llama", kv_bits=8, quantized_kv_start=start), prompt_of()
    plain = plain_run(target, prompt, TOKENS, (), prefill_step_size=8).tokens
    drafter = ScriptedDrafter([*prompt, *plain], target.vocab_size, 0.0, gamma=4)
    position, widest = PROMPT - 1, 0
    for round_ in decoded(target, prompt, drafter):
        assert not position < start < position + round_.scheduled + 1
        position += len(round_.tokens)
        widest = max(widest, round_.scheduled if position > start else 0)
    assert widest == 4


@pytest.mark.parametrize("kept", range(1, 5))
def test_rows_that_are_taken_back_leave_nothing(kept):
    """Other packed numbers, scales or biases than those of a cache that never had the rows."""
    target, prompt = target_of("llama", kv_bits=4, quantized_kv_start=4), prompt_of()
    for seed in (5, 6):
        block = np.array(random_tokens(5, seed=seed)).tolist()
        rejecting, fresh = target.new_caches(), target.new_caches()
        for caches in (rejecting, fresh):
            target(mx.array(prompt), caches)
        _, _, rollback = target.verify(mx.array(block), rejecting)
        rollback.keep(kept)
        target(mx.array(block[:kept]), fresh)
        for one, other in zip(rejecting, fresh, strict=True):
            assert type(one) is type(other) is QuantizedKVCache
            assert one.offset == other.offset == PROMPT + kept
            for a, b in zip(one.keys_and_values(), other.keys_and_values(), strict=True):
                for x, y in zip(a[1:], b[1:], strict=True):
                    assert mx.allclose(x, y, rtol=1e-4, atol=1e-6).item()
                # A last bit may send a number to the next of its 16 steps.
                assert float(np.mean(np.array(a[0] != b[0]))) < 0.02
        new = mx.array([7])
        (first, _), (second, _) = target(new, rejecting), target(new, fresh)
        assert mx.allclose(first, second, rtol=1e-2, atol=1e-2).item()


def test_an_empty_or_a_short_cache_is_not_quantized():
    """mlx-lm reads a prompt's first chunk as it is, whatever the start."""
    target = target_of("llama", kv_bits=4, quantized_kv_start=3)
    caches = target.new_caches()
    kinds = []
    for count in (2, 1, 1):
        target(random_tokens(count), caches)
        kinds.append({type(cache) for cache in caches})
    assert kinds == [{KVCache}, {KVCache}, {QuantizedKVCache}]


@pytest.mark.parametrize("name", ["gemma3_text", "gpt_oss"])
def test_windows_are_refused(name):
    """NotImplementedError in the middle of a text, which is mlx-lm's answer."""
    settings = CacheSettings(kv_bits=4)
    with pytest.raises(InputError, match="kv_bits with RotatingKVCache"):
        new_caches(tiny(name), name, settings)


def test_a_model_without_keys_is_refused():
    """Bits that are taken and do nothing."""
    with pytest.raises(InputError, match="kv_bits with ArraysCache"):
        new_caches(family("mamba2"), "mamba2", CacheSettings(kv_bits=4))
    caches = new_caches(family("qwen3_5"), "qwen3_5", CacheSettings(kv_bits=4))
    assert {type(leaf).__name__ for leaf in leaves(caches)} == {"ArraysCache", "KVCache"}


def test_attention_that_cannot_read_them_is_refused():
    """What mlx-lm raises at the first token behind the start."""
    settings = CacheSettings(kv_bits=4, kv_group_size=32)
    with pytest.raises(InputError, match=r"cannot run with kv_bits 4, .*TypeError"):
        check_quantized(tiny("gemma2", head_dim=32), Path("some folder"), settings)


@pytest.mark.parametrize(
    ("size", "group", "said"),
    [
        (32, 64, "kv_group_size 64 with heads of size 32; expected .* divides it: 32.*-size 32"),
        (64, 128, "kv_group_size 128 with heads of size 64; expected .* it: 32 or 64.*-size 64"),
        (16, 32, "kv_bits 4 with heads of size 16; expected heads whose size is a multiple of 32"),
        (80, 64, "kv_bits 4 with heads of size 80; .*Load it without kv_bits"),
    ],
)
def test_heads_without_a_whole_number_of_groups_are_named(size, group, said):
    """MLX's message about the last dimension of some matrix."""
    settings = CacheSettings(kv_bits=4, kv_group_size=group)
    with pytest.raises(InputError, match=f"^some folder: found {said}"):
        check_quantized(tiny("llama", head_dim=size), Path("some folder"), settings)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", MODELS)
def test_the_self_check_runs_with_quantized_caches(name, bits):
    """A check of a cache that requests do not use, or that compares with unquantised rows."""
    target = target_of(name, kv_bits=bits)
    check_rollback(target, name)
    assert max(measure_gaps(target.model, name, target.cache_settings)) < 0.05
    at_once = target.cache_settings.quantized_at_once
    assert max(measure_gaps(target.model, name, at_once)) < 0.05


def test_the_self_check_sees_quantized_rows(monkeypatch):
    """A self-check whose caches are never quantized, or that nothing can fail."""
    target = target_of("llama", kv_bits=2)
    check_rollback(target, "llama")
    target.rolls_back = False
    monkeypatch.setattr(QuantizedKVCache, "trim", lambda cache, rows: 0)
    with pytest.raises(InputError, match="taken back with kv_bits 2"):
        check_rollback(target, "llama")


@pytest.mark.parametrize(
    "changes",
    [{"kv_bits": 7}, {"kv_bits": True}, {"kv_bits": 4.5}, {"kv_group_size": 48},
     {"quantized_kv_start": -1}, {"max_kv_size": 4}],
)  # fmt: skip
def test_values_that_mean_nothing_are_refused(changes):
    """A ValueError of MLX in the middle of a text."""
    with pytest.raises(InputError) as caught:
        CacheSettings(**changes).checked()
    assert caught.value.where == next(iter(changes))


def test_numbers_of_numpy_are_taken():
    """A key of a speed profile that JSON cannot write."""
    settings = CacheSettings(np.int64(4), np.int32(32), np.int64(0)).checked()
    numbers = {"kv_bits": 4, "kv_group_size": 32, "quantized_kv_start": 0}
    assert settings.key() == numbers | {"max_kv_size": None}
    assert all(type(settings.key()[name]) is int for name in numbers)
    assert CacheSettings(kv_group_size=32).key() == {}
