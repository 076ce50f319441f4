"""Races of compiled forwards, with a GPU and a clock that are not there."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from helpers.families import family
from helpers.pairs import TARGET, golden
from helpers.tiny_models import random_tokens, tiny
from kernels.fakes import CLOCK, FakeTogether

import dspark_mlx
from dspark_mlx.caches.batch import join
from dspark_mlx.caches.slots import Slots
from dspark_mlx.errors import InputError
from dspark_mlx.kernels.decision import Chosen, Decision
from dspark_mlx.kernels.forwards import Forwards
from dspark_mlx.kernels.linears import quantized_linears
from dspark_mlx.kernels.store import STOCK, Verdict
from dspark_mlx.kernels.whole import TOGETHER
from dspark_mlx.load import compiled
from dspark_mlx.load.compiled import COMPILED, Form, compile_forwards
from dspark_mlx.targets.compiled import CompiledForwards
from dspark_mlx.targets.exact import make_exact
from dspark_mlx.targets.tap import Target

pytestmark = pytest.mark.usefixtures("built_anew")
BLOCK, NARROW, LONG, BATCH = map(
    str, (Form(8), Form(2), Form(8, positions=2048), Form(8, requests=2))
)


@pytest.fixture
def gpu(monkeypatch):
    """A device on which a compiled forward is so many seconds quicker, by its rows and slots."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(compiled, "perf_counter", CLOCK)
    own = CompiledForwards.__call__

    def set_gain(gain: Callable[[int, int, int], float]) -> None:
        def call(self, tokens, caches):
            made = own(self, tokens, caches)
            # A request alone runs as a batch of one inside.
            if made is not None and tokens.shape[:-1] != (1,):
                requests, _, slots, _ = caches[0].keys.shape
                CLOCK.now -= gain(tokens.shape[-1], slots, requests)
            return made

        monkeypatch.setattr(CompiledForwards, "__call__", call)

    return set_gain


@pytest.fixture
def target():
    made = Target(tiny("llama"), (0, 2), "llama")
    yield made
    made.close()


def verified(target: Target) -> mx.array:
    """Logits of two forwards behind a text of 20 tokens."""
    caches = target.new_caches()
    target(random_tokens(20), caches)
    _, _, rollback = target.verify(random_tokens(8), caches)
    rollback.keep(3)
    return target.verify(random_tokens(4), caches)[0]


def unchanged(target: Target, before: mx.array) -> bool:
    return target.compiled is None and bool(mx.array_equal(verified(target), before).item())


def test_a_win_is_used_and_known_to_the_next_load(gpu, target, monkeypatch, cache_home):
    """A race at every load, or verdicts of another network."""
    gpu(lambda *form: 100)
    right = verified(target)
    compile_forwards(target)
    assert list(target.compiled_races) == [BLOCK, LONG, NARROW, BATCH]
    for verdict in target.compiled_races.values():
        assert verdict.winner == COMPILED and verdict.reason.endswith("1.25x MLX's speed")
    assert target.compiled.batches
    assert (target.compiled.least, target.compiled.most) == (2, sys.maxsize)
    assert np.allclose(np.array(verified(target)), np.array(right), atol=1e-4)
    assert list(target.compiled._graphs) == [(1, 8, 256), (1, 4, 256)]
    (path,) = cache_home.rglob("kernels.json")
    assert len(json.loads(path.read_text())["verdicts"]) == 4

    def no_race(*args: object) -> None:
        raise AssertionError("a race of what is known")

    target.close()
    with monkeypatch.context() as patch:
        patch.setattr(Forwards, "race", no_race)
        same = Target(tiny("llama", seed=1), (1,), "the same shapes")
        compile_forwards(same)
        assert same.compiled is not None and len(same.compiled_races) == 4
        same.close()
        other = Target(tiny("llama", num_hidden_layers=2), (1,), "another shape")
        with pytest.raises(AssertionError, match="known"):
            compile_forwards(other)
        other.close()


def test_a_loss_leaves_everything(gpu, target):
    gpu(lambda *form: -100)
    before = verified(target)
    compile_forwards(target)
    assert list(target.compiled_races) == [BLOCK]
    assert target.compiled_races[BLOCK].winner == STOCK
    assert "too little" in target.compiled_races[BLOCK].reason and unchanged(target, before)


def test_each_form_is_used_where_it_wins(gpu, target):
    gpu(lambda rows, slots, requests: 100 if (rows > 2) & (slots < 1024) & (requests < 2) else -100)
    compile_forwards(target)
    winners = {what: found.winner for what, found in target.compiled_races.items()}
    assert winners == {BLOCK: COMPILED, LONG: STOCK, NARROW: STOCK, BATCH: STOCK}
    assert (target.compiled.least, target.compiled.most) == (4, 1024)
    caches = [target.new_caches() for _ in range(2)]
    for each in caches:
        target(random_tokens(9), each)
    target.verify(random_tokens(10).reshape(2, 5), join(caches))
    assert not target.compiled.batches and not target.compiled._graphs


@pytest.mark.parametrize(("max_length", "raced"), [(1024, False), (2048, False), (4096, True)])
def test_no_race_is_run_past_the_positions(gpu, target, max_length, raced):
    """Rows that are read past the end of a table of positions."""
    gpu(lambda *form: 100)
    positions = []
    own = target.model.model.__class__.__call__

    def call(self, inputs, cache, *others):
        positions.append(int(mx.array(cache[0].offset).max()) if cache[0].keys is not None else 0)
        return own(self, inputs, cache, *others)

    inner = target.model.model
    inner.__class__ = type("Looking", (type(inner),), {"__call__": call})
    compile_forwards(target, max_length)
    assert (LONG in target.compiled_races) is raced and max(positions) < max_length
    assert target.compiled.most == (sys.maxsize if raced else 1024)


def test_wrong_numbers_are_refused_at_any_length(gpu, target, monkeypatch):
    """A mask that is right in a short text alone."""
    gpu(lambda *form: 100)
    before = verified(target)
    right = Slots.causal.func

    def causal(self: Slots) -> mx.array:
        mask = right(self)
        return mask if mask.shape[-1] < 1024 else mask & (mx.arange(mask.shape[-1]) > 1000)

    monkeypatch.setattr(Slots, "causal", property(causal))
    compile_forwards(target)
    assert [found.winner for found in target.compiled_races.values()] == [COMPILED, STOCK]
    assert "logits differ" in target.compiled_races[LONG].reason and unchanged(target, before)


class Counting(nn.Module):
    """A model that asks its cache for a number, which a graph does not know."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @property
    def layers(self):
        return self.inner.layers

    def __call__(self, tokens, cache=None):
        if cache is not None:
            assert int(cache[0].offset) >= 0
        return self.inner(tokens, cache=cache)


@pytest.mark.parametrize(
    ("model", "error"),
    [(lambda: family("afm7"), "AttributeError"), (lambda: Counting(tiny("llama")), "ValueError")],
    ids=["asks a cache for more", "needs numbers"],
)
def test_what_cannot_be_compiled_is_refused_with_the_reason(gpu, model, error):
    """A load that ends by an error of the model's code."""
    mx.enable_compile()
    gpu(lambda *form: 100)
    target = Target(model(), (0,), "refused")
    before = verified(target)
    compile_forwards(target)
    assert target.compiled_races[BLOCK].winner == STOCK
    assert target.compiled_races[BLOCK].reason.startswith(error) and unchanged(target, before)
    target.close()


def test_nothing_is_raced_where_nothing_can_be_won(target, gpu, monkeypatch):
    """The CPU backend, exact rows, states without positions."""
    recurrent = Target(family("qwen3_next"), (0,), "recurrent")
    compile_forwards(recurrent)
    assert recurrent.compiled is None and recurrent.compiled_races == {}
    recurrent.close()
    make_exact(target, 4)
    compile_forwards(target)
    assert target.compiled_races == {}
    target.drop_rows()
    monkeypatch.undo()
    compile_forwards(target)
    assert target.compiled is None and target.compiled_races == {}


def with_fakes(saved: float, together: Verdict | None) -> Target:
    """A quantized target whose products of 8 rows are a fake's, with what was found for it."""
    model = tiny("llama", num_hidden_layers=2, intermediate_size=96)
    nn.quantize(model, 32, 8, class_predicate=lambda _, m: isinstance(m, nn.Linear))
    target = Target(model, (0,), "quantized")
    fake = FakeTogether("together", gain=0.0, inside=0.0, saved=saved)
    chosen: Chosen = {linear: {8: fake} for linear in quantized_linears(model)}
    target.use_kernels(Decision(chosen, (), {}, together=together))
    return target


LOST = Verdict(STOCK, "which is too little", {STOCK: 2.0, TOGETHER: 1.99}, {})


@pytest.mark.parametrize(("saved", "wins"), [(20.0, True), (-20.0, False)])
def test_shared_launches_are_raced_again(gpu, saved, wins):
    """What saves something only now, or is used though it still does not."""
    gpu(lambda *form: 100)
    target = with_fakes(saved, LOST)
    before = target.kernels
    compile_forwards(target)
    assert target.compiled_races[TOGETHER].winner == (TOGETHER if wins else STOCK)
    assert bool(target.kernels.siblings) is wins
    assert target.kernels.together == (target.compiled_races[TOGETHER] if wins else LOST)
    assert target.kernels.chosen is before.chosen
    assert target.compiled.least == 2
    assert mx.isfinite(verified(target)).all().item()
    target.drop_kernels()
    target.close()


def test_graphs_of_shared_launches_are_made_once(gpu, monkeypatch):
    """A race whose one side makes its graph in every turn, and loses by that."""
    made: list[tuple[int, int]] = []
    own = CompiledForwards._compiled

    def count(self: CompiledForwards, rows: int, slots: int):
        made.append((rows, slots))
        return own(self, rows, slots)

    gpu(lambda *form: 100)
    monkeypatch.setattr(CompiledForwards, "_compiled", count)
    target = with_fakes(20.0, LOST)
    compile_forwards(target)
    assert target.compiled_races[TOGETHER].winner == TOGETHER
    # By each race of forwards, and on both sides of that of shared launches.
    assert len(made) == 6
    target.drop_kernels()
    target.close()


@pytest.mark.parametrize("together", [None, Verdict(STOCK, "has other bits", {}, {})])
def test_shared_launches_that_are_wrong_are_not_raced_again(gpu, together):
    gpu(lambda *form: 100)
    target = with_fakes(20.0, together)
    compile_forwards(target)
    assert TOGETHER not in target.compiled_races and target.compiled is not None
    target.drop_kernels()
    target.close()


def test_load_compiles_unless_told_not_to(gpu):
    gpu(lambda *form: 100)
    for asked in (True, False):
        decoder = dspark_mlx.load(TARGET, golden("vanilla"), "full", compiled=asked)
        target = decoder.engine.target
        assert (target.compiled is not None) is asked and bool(target.compiled_races) is asked
    with pytest.raises(InputError, match="compiled"):
        dspark_mlx.load(TARGET, golden("vanilla"), "full", compiled="no")


def test_batches_that_cannot_be_compiled(gpu, target, monkeypatch):
    """A network whose batch fails where a request alone does not."""
    gpu(lambda *form: 100)
    own = Slots.positions.func

    def positions(self: Slots) -> mx.array:
        if self.offset.size > 1:
            raise NotImplementedError("one at a time")
        return own(self)

    monkeypatch.setattr(Slots, "positions", property(positions))
    compile_forwards(target)
    assert target.compiled_races[BATCH].reason == "NotImplementedError: one at a time"
    assert target.compiled_races[NARROW].winner == COMPILED and not target.compiled.batches
