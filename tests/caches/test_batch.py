"""Batches: requests that stand at different positions and keep different numbers of rows."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from helpers.cached import Cached, each, limit, quantized
from helpers.families import family
from helpers.slow_cases import some_slow
from helpers.tiny_models import tiny
from mlx_lm.models.cache import make_prompt_cache

from dspark_mlx.caches.batch import BatchCaches, can_join, join, rows_of
from dspark_mlx.targets.tap import Target

WIDTH = 5
MODELS = {
    "plain": lambda: tiny("llama"),
    "quantized": lambda: Cached(tiny("llama", head_dim=32), each(quantized)),
    "window": lambda: tiny("gpt_oss"),
    "delta net and attention": lambda: family("qwen3_next"),
    "convolution": lambda: family("lfm2"),
    "state space": lambda: family("mamba2"),
    "two mixers on one state": lambda: family("rwkv7"),
    "list of states and keys": lambda: family("falcon_h1"),
    "list of states and a window": lambda: family("baichuan_m1"),
}
ALONE = {"chunks": "llama4", "window and groups": "deepseek_v41"}


@pytest.fixture(scope="module", params=MODELS)
def target(request):
    target = Target(MODELS[request.param](), (1,), request.param)
    yield target
    target.close()


class Batch:
    """Requests in one batch, and the committed tokens of each."""

    def __init__(self, target: Target, lengths: list[int], seed: int = 0) -> None:
        self.target = target
        self.rng = np.random.default_rng(seed)
        self.committed: list[list[int]] = []
        self.caches: BatchCaches = []
        for length in lengths:
            self.add(length)

    def add(self, length: int) -> None:
        tokens = self.rng.integers(0, 64, length).tolist()
        caches = make_prompt_cache(self.target.model)
        self.target(mx.array(tokens), caches)
        self.caches = join([self.caches, caches] if self.caches else [caches])
        self.committed.append(tokens)

    def round(self, width: int, kept: list[int]) -> mx.array:
        """Verify `width` random rows of each; logits of each request's last row kept."""
        rows = self.rng.integers(0, 64, (len(kept), width))
        logits, taps, rollback = self.target.verify(mx.array(rows), self.caches)
        assert taps[0].shape[:2] == (len(kept), width)
        rollback.keep_each(kept)
        for tokens, row, n in zip(self.committed, rows.tolist(), kept, strict=True):
            tokens += row[:n]
        return mx.stack([logits[i, n - 1] for i, n in enumerate(kept)])

    def check(self, logits: mx.array) -> None:
        for tokens, row in zip(self.committed, logits, strict=True):
            model = self.target.model
            fresh = model(mx.array([tokens]), cache=make_prompt_cache(model))[0, -1]
            error = float(np.array(mx.abs(row - fresh).max() / mx.abs(fresh).max()))
            assert error < limit(self.target.where), f"{len(tokens)} tokens: {error:.1e}"


VERDICTS = [[1, 3, 5], [5, 5, 2], [4, 1, 1], [5, 5, 5], [2, 2, 2]]


@pytest.mark.parametrize("kept", some_slow(VERDICTS, VERDICTS[:3]), ids=str)
def test_next_logits_are_a_fresh_prefills(target, kept):
    """Rows of one request cut back by another's verdict; once and twice in a row."""
    batch = Batch(target, [3, 30, 8])
    batch.round(WIDTH, kept)
    batch.check(batch.round(1, [1, 1, 1]))
    batch.round(WIDTH, kept[::-1])
    batch.check(batch.round(WIDTH, kept))


def test_random_verdicts(target):
    """An error that adds up, or shows only where requests have drifted far apart."""
    batch = Batch(target, [2, 17, 9])
    for i in range(20):
        width = int(batch.rng.integers(1, WIDTH + 3))
        logits = batch.round(width, batch.rng.integers(1, width + 1, 3).tolist())
        mx.eval(logits)
        if i % 10 == 9:
            batch.check(logits)


def test_requests_join_and_leave(target):
    """A request that joins at its own position, or that takes another's rows along."""
    batch = Batch(target, [4, 20])
    batch.round(WIDTH, [2, 5])
    batch.add(11)
    batch.check(batch.round(WIDTH, [1, 3, 4]))
    batch.caches = rows_of(batch.caches, [2, 0])
    batch.committed = [batch.committed[2], batch.committed[0]]
    batch.check(batch.round(WIDTH, [5, 2]))
    batch.check(batch.round(1, [1, 1]))


def test_quantized_rows_are_a_fresh_caches():
    """The same of the quantised kind bit by bit, whose rounding a model's noise may turn over."""
    rng = np.random.default_rng(0)
    committed = [mx.array(rng.normal(size=(1, 2, n, 32)).astype(np.float32)) for n in (3, 300)]
    alone = []
    for rows in committed:
        alone.append(quantized())
        alone[-1].update_and_fetch(rows, -rows)
    batch = join([[cache] for cache in alone])[0]
    for _ in range(40):
        rows = mx.array(rng.normal(size=(2, 2, WIDTH, 32)).astype(np.float32))
        keys, values = batch.update_and_fetch(rows, -rows)
        kept = rng.integers(1, WIDTH + 1, 2).tolist()
        for i, n in enumerate(kept):
            committed[i] = mx.concatenate([committed[i], rows[i : i + 1, :, :n]], axis=2)
            fresh = quantized()
            expected = fresh.update_and_fetch(committed[i], -committed[i])
            end = fresh.offset
            for a, b in zip((*keys, *values), (*expected[0], *expected[1]), strict=True):
                assert mx.array_equal(a[i : i + 1, :, :end], b).item()
        batch.drop([WIDTH - n for n in kept])


@pytest.mark.parametrize("name", ALONE.values(), ids=ALONE)
def test_kinds_that_cannot_join_say_so(name):
    """A cache that is joined although its requests cannot stand at different positions."""
    assert not can_join(make_prompt_cache(family(name)))


def test_kinds_that_can_join_say_so(target):
    assert can_join(make_prompt_cache(target.model))


def test_the_solo_caches_are_not_changed():
    """A batch that writes into the arrays of the request that joined."""
    model: nn.Module = tiny("llama")
    target, caches = Target(model, (), "tiny"), make_prompt_cache(model)
    target(mx.array([1, 2, 3]), caches)
    batch = join([caches])
    before = mx.array(caches[0].keys)
    mx.eval(before)
    logits, _ = target(mx.array([[4, 5]]), batch)
    mx.eval(logits, batch[0].arrays())
    assert mx.array_equal(before, caches[0].keys).item()
    target.close()
