"""Exact targets: the rows of a verify forward have every bit of plain steps, or are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from helpers.copying import AlwaysCopies
from helpers.families import family
from helpers.slow_cases import some_slow
from helpers.tiny_models import LAYERS, VOCAB, random_tokens, tiny
from helpers.toys import toy_pair

from dspark_mlx.caches import CacheSettings, leaves
from dspark_mlx.engine.rounds import rounds
from dspark_mlx.engine.state import Engine
from dspark_mlx.errors import InputError
from dspark_mlx.kernels.linears import stock
from dspark_mlx.lookup.lookup import Lookup
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.targets.exact import make_exact
from dspark_mlx.targets.exact_check import same_bits
from dspark_mlx.targets.tap import Target

TAPS = (-1, 0)
MOST = 6
PROMPT = [int(token) for token in np.array(random_tokens(9, seed=5))]
TYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16}
EXACT = [
    (name, bits, dtype) for name in ("llama", "qwen3") for bits in (None, 4, 8) for dtype in TYPES
]
QUICK = [
    ("llama", None, "bfloat16"),
    ("llama", 4, "float32"),
    ("qwen3", 4, "bfloat16"),
    ("qwen3", 8, "float32"),
]


def target_of(name: str, bits: int | None = None, dtype: str = "float32", **settings) -> Target:
    """A tiny target, whose quantized matrices are all that groups of 32 can be made of."""
    model = tiny(name, head_dim=32)
    model.set_dtype(TYPES[dtype])
    if bits:
        nn.quantize(
            model,
            32,
            bits,
            class_predicate=lambda _, m: hasattr(m, "to_quantized") and m.weight.shape[1] % 32 == 0,
        )
    mx.eval(model.parameters())
    return Target(model, TAPS, name, CacheSettings(**settings))


def decoded(engine: Engine, count: int = 40, reference: list[int] | None = None):
    """A request's tokens, their log-probabilities with alternatives, and its rounds."""
    made = list(
        rounds(
            engine,
            PROMPT,
            max_tokens=count,
            stop_tokens=(),
            sampler=make_sampler(Sampling(logprobs=3), engine.target.vocab_size),
            lookup=Lookup([reference]) if reference else None,
        )
    )
    tokens = [token for done in made for token in done.tokens]
    return tokens, [one for done in made for one in done.logprobs], made


def plain(target: Target) -> Engine:
    return Engine(target, None, FullScheduler())


def steps(target: Target, text: mx.array) -> tuple[list[mx.array], list]:
    """The logits `[1, vocabulary]` of plain steps behind the prompt, and their caches."""
    caches = target.new_caches()
    target(mx.array(PROMPT), caches)
    return [target(text[i : i + 1], caches)[0] for i in range(text.size)], caches


def verified(target: Target, text: mx.array) -> Iterator[tuple[int, mx.array, list]]:
    """Verify forwards of all widths, most of them accepted in part: place, logits, caches."""
    caches, start, width = target.new_caches(), 0, 2
    target(mx.array(PROMPT), caches)
    while start + width <= text.size:
        logits, _, rollback = target.verify(text[start : start + width], caches)
        kept = 1 + (start + width) % width
        rollback.keep(kept)
        yield start, logits, caches
        start, width = start + kept, 2 + (width - 1) % (MOST - 1)


@pytest.mark.parametrize("case", some_slow(EXACT, QUICK), ids=str)
def test_logits_and_caches_have_the_bits_of_plain_steps(case):
    """A product, an attention or a rollback that rounds otherwise, with which a near tie flips."""
    name, bits, dtype = case
    target, text = target_of(name, bits, dtype), random_tokens(40, seed=3)
    single, own = steps(target, text)
    make_exact(target, MOST)
    assert target.exact
    seen = 0
    for start, logits, caches in verified(target, text):
        expected = mx.concatenate(single[start : start + logits.shape[0]])
        assert same_bits(logits, expected).item()
        seen = caches[0].offset
    assert seen > len(PROMPT) + 30
    for a, b in zip(caches, own, strict=True):
        for mine, theirs in ((a.keys, b.keys), (a.values, b.values)):
            assert same_bits(mine[..., :seen, :], theirs[..., :seen, :]).item()


@pytest.mark.parametrize("case", some_slow(EXACT, QUICK), ids=str)
def test_speculative_text_is_plain_decoding_to_the_bit(case):
    """A text that is the same by luck: its log-probabilities are too, and drafts wrong or right."""
    name, bits, dtype = case
    target = target_of(name, bits, dtype)
    tokens, logprobs, _ = decoded(plain(target))
    make_exact(target, MOST)
    assert decoded(plain(target))[:2] == (tokens, logprobs)
    wrong = toy_pair(target, FullScheduler())
    found = decoded(wrong)
    assert found[:2] == (tokens, logprobs)
    assert max(done.scheduled for done in found[2]) > 2
    # Copies of the text itself, in which every eighth token is another one.
    spoilt = [(t + 1) % VOCAB if i % 8 == 7 else t for i, t in enumerate(PROMPT + tokens)]
    right = replace(wrong, scheduler=AlwaysCopies())
    found = decoded(right, reference=spoilt)
    assert found[:2] == (tokens, logprobs)
    assert max(done.accepted for done in found[2]) > 3


def test_quantized_caches_too():
    """Rows that read quantized keys in another way than single ones."""
    settings = {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 20}
    target = target_of("llama", 4, **settings)
    expected = decoded(plain(target))[:2]
    make_exact(target, MOST)
    assert decoded(toy_pair(target, FullScheduler()))[:2] == expected


def faulty(module: nn.Module, change) -> None:
    """One module whose outputs change by the number of rows, in its first argument."""
    original = type(module)

    def call(self, x, *args, **kwargs):
        return change(original.__call__(self, x, *args, **kwargs), x.shape[1])

    module.__class__ = type(original.__name__, (original,), {"__call__": call})


def classes(target: Target) -> list[type]:
    return [type(module) for _, module in target.model.named_modules()]


@pytest.mark.parametrize(
    ("layer", "rows"), [(0, 2), (2, 5), (1, MOST)], ids=["first", "last", "widest"]
)
def test_a_layer_with_other_rows_is_refused_by_name(layer, rows):
    """A fault in one layer, for one number of rows, that is named wrongly or not found."""
    target = target_of("llama")
    faulty(target._layers[layer].mlp, lambda y, n: y * (1 + 2.0**-20) if n == rows else y)
    before, logits = classes(target), target(mx.array(PROMPT), target.new_caches())[0]
    named = rf"layer {layer} \(TransformerBlock, KVCache\) for {rows} rows .*Without --exact"
    with pytest.raises(InputError, match=named):
        make_exact(target, MOST)
    assert not target.exact and target.batches is None and classes(target) == before
    assert same_bits(target(mx.array(PROMPT), target.new_caches())[0], logits).item()


def test_other_logits_are_refused():
    """A fault behind the last layer."""
    target = target_of("llama")
    faulty(target.model, lambda logits, rows: logits + rows * 1e-3)
    with pytest.raises(InputError, match="the logits of Model for 2 rows"):
        make_exact(target, MOST)


@pytest.mark.parametrize("name", ["gemma3_text", "gpt_oss"])
def test_windows_are_refused(name):
    """A window that is full holds its keys in the order of plain steps, and for rows in another.
    The texts that are compared are too short to fill one of a real model."""
    target = Target(tiny(name, sliding_window=512), TAPS, name)
    with pytest.raises(InputError, match=r"RotatingKVCache.* behind a full window|mask of their"):
        make_exact(target, MOST)


def test_experts_are_checked_too():
    """What is not changed is left out of the comparison."""
    target = Target(tiny("qwen3_moe"), TAPS, "experts")
    expected = decoded(plain(target))[:2]
    make_exact(target, MOST)
    assert decoded(toy_pair(target, FullScheduler()))[:2] == expected


@pytest.mark.parametrize("name", ["qwen3_next", "mamba2", "lfm2"])
def test_recurrent_targets_are_exact_or_refused(name):
    """Products of a mixer that are remembered row by row, and run again as one."""
    target = Target(family(name), TAPS, name)
    expected = decoded(plain(target), 24)[:2]
    try:
        make_exact(target, MOST)
    except InputError as error:
        assert "other bits in layer" in str(error)
        assert not target.exact
        return
    assert decoded(toy_pair(target, FullScheduler()), 24)[:2] == expected


def test_prompts_are_read_as_before_and_close_gives_the_network_back():
    """A short prompt that is read row by row; modules that stay changed."""
    target, prompts = target_of("llama"), [random_tokens(n, seed=n) for n in range(2, MOST + 1)]
    before = classes(target)
    logits = [target(ids, target.new_caches())[0] for ids in prompts]
    make_exact(target, MOST)
    assert classes(target) != before
    # Were it on, every row would be read by itself.
    calls = counted(target.model.model.layers[1].mlp.up_proj)
    for ids, expected in zip(prompts, logits, strict=True):
        assert same_bits(target(ids, target.new_caches())[0], expected).item()
    assert calls == [ids.size for ids in prompts]
    other = target.sharing((2,), "llama")
    assert other.exact and len(other(prompts[0], target.new_caches())[1]) == 1
    target.drop_rows()
    assert not target.exact and not other.exact
    other.close()
    plainly = [type(m) for _, m in tiny("llama", head_dim=32).named_modules()]
    assert classes(target) == plainly


def counted(module: nn.Module) -> list[int]:
    """The rows of each call of a module from now on."""
    calls: list[int] = []

    def note(y, rows):
        calls.append(rows)
        return y

    faulty(module, note)
    return calls


class ExactKernel:
    """MLX's own products row by row, as a kernel that claims to be exact; `bent` ones are not."""

    name, exact, source, backend = "exact", True, "", "metal"

    def __init__(self, bent: float = 0.0) -> None:
        self.bent, self.calls = bent, 0

    def why_not(self, product):
        return None

    def __call__(self, x, weight, scales, biases, product):
        self.calls += 1
        flat = x.reshape(-1, x.shape[-1])
        each = [
            stock(flat[i : i + 1], weight, scales, biases, product) for i in range(product.rows)
        ]
        return mx.concatenate(each).reshape(*x.shape[:-1], product.outputs) + self.bent


@pytest.mark.parametrize("way", ["stands", "bent", "crashes"])
def test_an_exact_kernel_stands_in_where_it_is_exact(way):
    """A kernel that is left out where MLX's product has other bits, or that is believed."""
    target = target_of("llama", 4)
    for layer in target._layers:
        faulty(layer.mlp.up_proj, lambda y, rows: y * (1 + 2.0**-20) if rows > 1 else y)
    expected = decoded(plain(target))[:2]
    assert decoded(toy_pair(target, FullScheduler()))[:2] != expected
    kernel = ExactKernel(0.5 if way == "bent" else 0.0)
    make_exact(
        target,
        MOST,
        (kernel,),
        lambda trials: dict.fromkeys(trials, "SIGSEGV") if way == "crashes" else {},
    )
    kernel.calls = 0
    assert decoded(toy_pair(target, FullScheduler()))[:2] == expected
    assert (kernel.calls > 0) == (way == "stands")


def test_a_limited_cache_is_refused():
    """A cache that is full after the check, and then read in another order."""
    target = target_of("qwen3", max_kv_size=64)
    with pytest.raises(InputError, match="max_kv_size 64"):
        make_exact(target, MOST)
    assert len(leaves(target.new_caches())) == LAYERS
