"""What a request was said to take, against what it takes."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import pytest
from helpers.families import CONFIGS, family
from helpers.tiny_models import tiny
from helpers.toys import engine_of, example_config

from dspark_mlx.caches import CacheSettings, cache_arrays
from dspark_mlx.engine.group import Solo
from dspark_mlx.engine.prefill import Prefill
from dspark_mlx.engine.state import Engine, State
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.serving.footprint import Footprint
from dspark_mlx.targets.network import REFUSALS
from dspark_mlx.targets.tap import Target

BITS = {"kv_bits": 4, "kv_group_size": 32}
CASES = {
    "full attention": ("llama", {}, {}),
    "sliding window": ("gpt_oss", {}, {}),
    "drafter with a window": ("llama", {}, {"window": 4}),
    "quantized": ("llama", {**BITS, "quantized_kv_start": 0}, {}),
    "quantized later": ("llama", {**BITS, "quantized_kv_start": 600}, {}),
}


def engine(name: str):
    kind, caches, own = CASES[name]
    target = Target(tiny(kind, head_dim=32), (-1, 0), name, CacheSettings(**caches))
    hidden = target.hidden_size
    sizes = {"hidden_size": hidden, "target_hidden_size": hidden, "owns_head": False}
    heads = {"block_size": 4, "head": "vanilla", "head_rank": 8, "confidence": "hidden+markov"}
    config = example_config(target, "dspark", **sizes, **heads)
    if own:
        config = config.with_window(own["window"])
    return engine_of(target, FullScheduler(), config)


def held(pair, tokens: int, chunk: int) -> int:
    """Bytes of a request's caches and context that has read a prompt."""
    prompt = [1 + i % 50 for i in range(tokens)]
    sampler = make_sampler(Sampling(), pair.target.vocab_size, tokens)
    state = State.start(pair, prompt, sampler, 1, ())
    reading = Prefill(Solo(pair, state), prompt, chunk, None)
    while reading.step() is None:
        pass
    pair.target.cache_settings.quantize(state.caches)
    assert state.speculation is not None
    keys = [a for c in state.speculation.context.caches for a in (c.keys, c.values)]
    return sum(array.nbytes for array in (*cache_arrays(state.caches), *keys))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tokens", [30, 700])
def test_caches_and_context_are_counted(name, tokens):
    """A drafter's context, a window or --kv-bits that is not counted."""
    pair = engine(name)
    said = Footprint(pair, {}).caches(tokens, 64)
    found = held(pair, tokens, 64)
    # What is quantized was not, before: its first chunk, or all up to --quantized-kv-start.
    assert found <= said <= (6 if name.startswith("quantized") else 1.2) * found
    pair.target.close()


def test_fewer_bits_are_fewer_bytes():
    plain, quantized = (engine(name) for name in ("full attention", "quantized"))
    more, less = (Footprint(pair, {}).caches(5000, 64) for pair in (plain, quantized))
    assert less < 0.7 * more
    later = replace(quantized.target.cache_settings, quantized_kv_start=4000)
    quantized.target.cache_settings = later
    between = Footprint(quantized, {}).caches(5000, 64)
    assert less < between < more
    for pair in (plain, quantized):
        pair.target.close()


@pytest.mark.parametrize("rows, before", [(64, 0), (512, 0), (256, 512)])
def test_a_forward_holds_no_more_than_was_said(rows, before):
    """Activations or attention's scores that are left out, of a prompt's chunk."""
    target = Target(tiny("llama", num_hidden_layers=4, hidden_size=128), (-1, 0), "toy")
    pair = Engine(target, None, FullScheduler())
    config = {"num_attention_heads": target.model.args.num_attention_heads}
    config["intermediate_size"] = target.model.args.intermediate_size
    caches = target.new_caches()
    for count in (before, rows):
        if count:
            mx.clear_cache()
            base = mx.get_active_memory()
            mx.reset_peak_memory()
            _, taps = target(mx.zeros((count,), mx.int32), caches)
            mx.eval(cache_arrays(caches), taps)
    taken = mx.get_peak_memory() - base
    footprint = Footprint(pair, config)
    said = footprint.forward(rows, rows + before) + footprint.caches(rows + before, rows)
    assert taken <= said <= 6 * taken
    target.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_takes_what_was_said(name):
    """A family whose forward, or whose caches, cannot be looked at without computing."""
    try:
        target = Target(family(name), (), name)
        caches = target.new_caches()
        target(mx.zeros((40,), mx.int32), caches)
    except REFUSALS as error:
        pytest.skip(f"refused at load: {error}")
    footprint = Footprint(Engine(target, None, FullScheduler()), {})
    assert sum(array.nbytes for array in cache_arrays(caches)) <= footprint.caches(40, 40)
    target.close()
