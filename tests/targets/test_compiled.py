"""Compiled verify forwards against those that Python builds, in float32.

`mx.compile` runs a C++ compiler on the CPU backend, seconds for each kernel. Most tests switch it
off, which leaves everything of a compiled forward but the graph; two have real graphs.
"""

from __future__ import annotations

import gc
import threading

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from helpers.cached import Cached, each, quantized
from helpers.families import family
from helpers.tiny_models import random_tokens, tiny
from kernels.fakes import FakeAttention
from mlx_lm.models.cache import KVCache

from dspark_mlx.caches import CacheSettings, cache_arrays, keep_rows
from dspark_mlx.caches.batch import alone, join, rows_of
from dspark_mlx.caches.slots import slots_for
from dspark_mlx.errors import InputError
from dspark_mlx.kernels.attention import AppliedAttention
from dspark_mlx.targets import compiled
from dspark_mlx.targets.exact import make_exact
from dspark_mlx.targets.tap import Target

MODELS = {
    "llama": lambda: tiny("llama"),
    "qwen3": lambda: tiny("qwen3"),
    "experts": lambda: tiny("qwen3_moe"),
    "latent attention": lambda: family("deepseek_v3"),
    "attention of its own": lambda: tiny("gemma2"),
    "a window in a whole cache": lambda: Cached(
        tiny("llama", sliding_window=8, layer_types=["full_attention", "sliding_attention"] * 2),
        each(KVCache),
    ),
}
ALONE = {"attention of its own"}
"""Their requests do not run in batches."""
LIMIT = 1e-5


@pytest.fixture
def llama():
    target = Target(tiny("llama"), (0, 2), "llama")
    yield target
    target.close()


def read(target: Target, *lengths: int) -> list[list]:
    """The caches of requests that have read so many tokens."""
    read = []
    for length in lengths:
        read.append(target.new_caches())
        target(random_tokens(length, seed=length), read[-1])
    return read


def differs(a: mx.array, b: mx.array) -> float:
    return float(np.array(mx.abs(a - b).max() / mx.abs(b).max()))


def verified(target: Target, compiled: bool) -> list[mx.array]:
    """Logits and taps of rounds of a request and of a batch, over a border of slots."""
    target.compiled = target.use_compiled() if compiled else None
    solo, *others = read(target, 247, 40, 13, 250)
    found: list[mx.array] = []
    for i, (rows, kept) in enumerate(((5, 2), (8, 1), (2, 2), (4, 4), (7, 3), (3, 1))):
        logits, taps, rollback = target.verify(random_tokens(rows, seed=i), solo)
        rollback.keep(kept)
        found += [logits, *taps]
    if target.where in ALONE:
        return found
    batch = join(others)
    rounds = (5, [1, 5, 3]), (1, [1, 1, 1]), (8, [8, 2]), (2, [1, 2])
    for i, (rows, each_kept) in enumerate(rounds):
        if len(each_kept) < len(batch[0].lengths):
            batch = rows_of(batch, [0, 2])
        tokens = random_tokens(rows * len(each_kept), seed=i).reshape(-1, rows)
        logits, taps, rollback = target.verify(tokens, batch)
        rollback.keep_each(each_kept)
        found += [logits, *taps]
    logits, _, _ = target.verify(random_tokens(3), alone(batch, 1))
    return [*found, logits]


@pytest.mark.parametrize("name", MODELS)
def test_agree_with_forwards_that_python_builds(built_anew, name):
    """A row that reads a rejected one, another request's, or past its window; a lost border."""
    target = Target(MODELS[name](), (-1, 1), name)
    right = verified(target, compiled=False)
    pairs = zip(verified(target, compiled=True), right, strict=True)
    assert all(a.shape == b.shape and differs(a, b) < LIMIT for a, b in pairs)
    forms = {(1, 5, 256), (1, 4, 512)}
    if name not in ALONE:
        forms |= {(3, 5, 256), (3, 1, 256), (2, 8, 512), (2, 2, 512), (1, 3, 512)}
    assert forms <= set(target.compiled._graphs)
    target.close()


def test_caches_go_back_and_forth(built_anew, llama):
    """Rows lost where mlx-lm makes room by numbers of its own, or reads slots that are not used."""
    text = random_tokens(1500, seed=3)
    caches, steps = llama.new_caches(), (5, 300, 4, 1, 250, 6, 2, 513, 7, 64, 3)
    llama.use_compiled()
    done = 0
    for rows in steps:
        part = text[done : done + rows]
        if rows <= 8:
            logits, _, rollback = llama.verify(mx.concatenate([part, part]), caches)
            rollback.keep(rows)
            logits = logits[:rows]
        else:
            logits, _ = llama(part, caches)
        done += rows
        fresh, _ = llama(text[:done], None)
        assert differs(logits[-1], fresh[-1]) < LIMIT, done
    assert caches[0].offset == done and len(llama.compiled._graphs) > 3


def test_what_is_not_compiled(built_anew, llama):
    """Caches of another kind that are taken for keys and values; rows of images at positions of
    their own; exact rows."""
    ran = []
    run = llama._run
    llama._run = lambda *args: ran.append(args) or run(*args)
    forwards = llama.use_compiled(least=4, most=512)
    caches, long = read(llama, 9, 505)
    empty, tokens = llama.new_caches(), random_tokens(5)
    llama.verify(tokens[:3], caches)
    llama.verify(tokens, caches, lambda rows, caches: llama.model(rows, cache=caches))
    llama.verify(tokens, empty)
    llama.verify(mx.concatenate([tokens, tokens]), long)
    assert not forwards._graphs
    make_exact(llama, 5)
    llama.verify(tokens, caches)
    assert not llama.compiled._graphs
    llama.drop_rows()
    llama.verify(tokens, caches)
    assert list(llama.compiled._graphs) == [(1, 5, 256)]
    assert (llama.compiled.least, llama.compiled.most) == (4, 512)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (lambda: tiny("gpt_oss"), CacheSettings()),
        (lambda: family("qwen3_next"), CacheSettings()),
        (lambda: tiny("qwen3"), CacheSettings(max_kv_size=16)),
        (lambda: tiny("llama", head_dim=32), CacheSettings(8, 32, 0)),
        (lambda: Cached(tiny("llama", head_dim=32), each(quantized)), CacheSettings()),
    ],
    ids=["windows", "recurrent", "max_kv_size", "kv_bits", "quantized"],
)
def test_other_caches_stay_as_they_are(built_anew, model, settings):
    target = Target(model(), (0,), "other caches", settings)
    (caches,) = read(target, 12)
    forwards = target.use_compiled()
    logits, _, _ = target.verify(random_tokens(4), caches)
    assert mx.isfinite(logits).all().item() and not forwards._graphs
    target.close()


def test_keys_quantized_later(built_anew):
    """Keys and values of many slots, of which all are taken for the request's."""
    settings = CacheSettings(8, 32, 20)
    found = []
    for is_compiled in (False, True):
        target = Target(tiny("llama", head_dim=32), (0,), "quantized later", settings)
        (caches,) = read(target, 12)
        if is_compiled:
            target.use_compiled()
        for rows in (4, 5, 6):
            logits, _, _ = target.verify(random_tokens(rows), caches)
        found.append(logits)
        assert caches[0].offset == 27 and caches[0].bits == 8
        target.close()
    assert differs(*found) < LIMIT


@pytest.mark.parametrize("name", ["llama", "a window in a whole cache"])
def test_a_kernel_of_attention_is_told_how_many_keys_count(built_anew, name):
    """Keys behind the text, of another request, or outside of a window that are attended to."""
    target = Target(MODELS[name](), (-1, 1), name)
    right = verified(target, compiled=False)
    taken: list[tuple[int, int]] = []

    def attend(q, k, v, scale, end) -> mx.array:
        assert end.shape == (q.shape[0],) and q.shape[0] == k.shape[0]
        taken.append((q.shape[2], k.shape[2]))
        return FakeAttention("attention")(q, k, v, scale, end)

    applied = AppliedAttention(target.model, attend, lambda heads: heads.compiled, 256)
    pairs = zip(verified(target, compiled=True), right, strict=True)
    assert all(differs(a, b) < LIMIT for a, b in pairs)
    applied.close()
    # Forwards over up to 256 slots, in the layers without a window.
    layers = 3 if name == "llama" else 2
    assert {keys for _, keys in taken} == {256} and len(taken) % layers == 0
    assert {1, 5} <= {rows for rows, _ in taken}
    target.close()


def test_a_forward_that_fails_leaves_nothing(built_anew, llama):
    """Taps of a half-made graph that the next forward takes for its own; rows half written."""
    (caches,) = read(llama, 20)
    right, taps, rollback = llama.verify(random_tokens(4), caches)
    rollback.keep(1)
    keep_rows(caches, 1, 0)
    llama.use_compiled()
    norm = llama.model.model.norm
    own = type(norm)

    def fail(self, x):
        raise ArithmeticError("no norm today")

    norm.__class__ = type("Failing", (own,), {"__call__": fail})
    with pytest.raises(ArithmeticError, match="today"):
        llama.verify(random_tokens(4), caches)
    assert not llama._tapped.recorded and caches[0].offset == 20
    norm.__class__ = own
    logits, again, _ = llama.verify(random_tokens(4), caches)
    assert differs(logits, right) < LIMIT and differs(again[1], taps[1]) < LIMIT


def test_targets_of_one_model_have_graphs_of_their_own(built_anew, llama):
    """A graph with the other target's taps."""
    (caches,) = read(llama, 20)
    llama.use_compiled(least=3)
    assert len(llama.verify(random_tokens(4), caches)[1]) == 2
    other = llama.sharing((-1, 1, 2), "llama")
    for target, taps in ((other, 3), (llama, 2), (other, 3)):
        (caches,) = read(target, 20)
        _, found, _ = target.verify(random_tokens(4), caches)
        assert len(found) == taps and target.compiled._graphs and target.compiled.least == 3
        assert differs(found[-1], llama(random_tokens(24), None)[1][-1][:4]) > LIMIT
    assert other.compiled is not llama.compiled
    llama.close()
    with pytest.raises(InputError, match="closed"):
        other.verify(random_tokens(4), caches)


def spied(model: nn.Module) -> list[str]:
    """The threads that call a model, which gets a class of its own."""
    calls: list[str] = []
    original = type(model)

    def call(self, *args, **kwargs):
        calls.append(threading.current_thread().name)
        return original.__call__(self, *args, **kwargs)

    model.__class__ = type(original.__name__, (original,), {"__call__": call})
    return calls


def test_a_graph_runs_without_python(llama):
    """Graphs of weights, kernels or a thread that are not there any more; graphs made anew at every
    round."""
    calls = spied(llama.model)
    forwards = llama.use_compiled()

    def logits() -> mx.array:
        (caches,) = read(llama, 20)
        calls.clear()
        first, _, rollback = llama.verify(random_tokens(4), caches)
        rollback.keep(2)
        second, _, _ = llama.verify(random_tokens(4), caches)
        mx.eval(first, second)
        return second

    right = logits()
    assert calls == ["MainThread"]
    assert differs(logits(), right) < LIMIT and not calls

    # Another thread has graphs of its own, and leaves this one's alone.
    elsewhere: list = []

    def other() -> None:
        elsewhere.extend((logits(), list(calls), logits(), list(calls)))
        mx.clear_streams()

    thread = threading.Thread(target=other, name="other")
    thread.start()
    thread.join()
    assert elsewhere[1::2] == [["other"], []]
    assert all(differs(each, right) < LIMIT for each in elsewhere[::2])
    assert mx.array_equal(logits(), right).item() and not calls

    # Exchanged weights are followed from the next request on.
    layer = llama.model.layers[1].mlp.down_proj
    before, layer.weight = layer.weight, layer.weight * 0.5
    other_weights = logits()
    assert calls == ["MainThread"] and differs(other_weights, right) > 0.01
    layer.weight = before
    assert differs(logits(), right) < LIMIT and calls

    # What stands in the modules belongs to a graph.
    llama._tapped.attach_anew(lambda: None)
    assert differs(logits(), right) < LIMIT and calls and llama.compiled is not forwards
    with llama.untapped():
        pass
    assert differs(logits(), right) < LIMIT and not calls
    (caches,) = read(llama, 20)
    llama.close()
    with pytest.raises(InputError, match="closed"):
        llama.verify(random_tokens(4), caches)


def test_graphs_are_bounded(monkeypatch):
    """Memory that grows with each number of rows, slots and requests."""
    monkeypatch.setattr(compiled, "MOST_GRAPHS", 4)
    target = Target(tiny("llama", num_hidden_layers=1), (0,), "llama")
    target.use_compiled()
    (caches,) = read(target, 20)

    def rounds() -> None:
        for rows in range(2, 9):
            logits, _, _ = target.verify(random_tokens(rows), caches)
            keep_rows(caches, rows, 0)
            mx.eval(logits, cache_arrays(caches))

    used = []
    for _ in range(4):
        rounds()
        assert list(target.compiled._graphs) == [(1, rows, 256) for rows in (5, 6, 7, 8)]
        gc.collect()
        mx.clear_cache()
        used.append(mx.get_active_memory())
    assert used[-1] == used[1]
    target.close()


def test_nothing_is_held_twice():
    """Keys and values that a graph copies at every forward, because somebody still holds them."""
    target = Target(
        tiny("llama", num_hidden_layers=2, head_dim=256, num_attention_heads=2), (0,), "wide"
    )
    target.use_compiled()
    (caches,) = read(target, 8)
    for cache in caches:
        cache.keys, cache.values = (mx.zeros((1, 2, 4096, 256)) for _ in "kv")
        cache.offset = 4000
    mx.eval(cache_arrays(caches))
    layer = caches[0].keys.nbytes
    for i in range(6):
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        logits, taps, rollback = target.verify(random_tokens(4, seed=i), caches)
        rollback.keep(2)
        mx.eval(logits, taps)
        del logits, taps, rollback
        assert mx.get_peak_memory() - before < layer / 2
    target.close()


def test_few_numbers_of_slots_hold_every_text():
    numbers = [slots_for(n) for n in range(1, 70_000)]
    assert all(n <= slots for n, slots in enumerate(numbers, 1))
    assert numbers == sorted(numbers) and all(slots_for(slots) == slots for slots in set(numbers))
    assert all(slots % 256 == 0 for slots in set(numbers)) and slots_for(4097) == 4608
    assert all(slots - n < max(256, n / 8) for n, slots in enumerate(numbers, 1))
    assert len(set(numbers)) < 60
