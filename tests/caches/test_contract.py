"""The contract of every cache kind: after any verdict the next logits are a fresh prefill's."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from helpers.families import family
from helpers.tiny_models import tiny
from mlx_lm.models.cache import CacheList, KVCache, make_prompt_cache

from dspark_mlx.caches import CACHES, leaves
from dspark_mlx.targets.tap import Target

WIDTH = 5
# DeepSeek V4.1 rounds keys to 8 and 4 bits in its forward, where a value may go either way:
# mlx-lm's own prefill and block differ by 2e-5 from a prefill of both.
ROUNDED, EXACT = 1e-3, 1e-5
LONG = ("delta net and attention", "window", "list of states and a window")


def quantized(model):
    """A model whose keys and values are kept in 8 bits."""
    caches = [KVCache().to_quantized(group_size=32, bits=8) for _ in model.layers]
    original = type(model)
    model.__class__ = type(original.__name__, (original,), {"make_cache": lambda self: caches_of()})

    def caches_of():
        return [KVCache().to_quantized(group_size=32, bits=8) for _ in caches]

    return model


MODELS = {
    "plain": lambda: tiny("llama"),
    "quantized": lambda: quantized(tiny("llama", head_dim=32)),
    "window": lambda: tiny("gpt_oss"),
    "chunks": lambda: family("llama4"),
    "delta net and attention": lambda: family("qwen3_next"),
    "convolution": lambda: family("lfm2"),
    "state space": lambda: family("mamba2"),
    "two mixers on one state": lambda: family("rwkv7"),
    "list of states and keys": lambda: family("falcon_h1"),
    "list of states and a window": lambda: family("baichuan_m1"),
    "list of keys": lambda: family("deepseek_v32"),
    "window and groups": lambda: family("deepseek_v41"),
}


@pytest.fixture(scope="module", params=MODELS)
def target(request):
    target = Target(MODELS[request.param](), (), request.param)
    yield target
    target.close()


class Session:
    """A request's caches and the committed tokens that they stand for."""

    def __init__(self, target: Target, seed: int) -> None:
        self.target = target
        self.rng = np.random.default_rng(seed)
        self.caches = make_prompt_cache(target.model)
        self.committed: list[int] = []

    def prefill(self, length: int) -> None:
        self.committed = self.rng.integers(0, 64, length).tolist()
        self.target(mx.array(self.committed), self.caches)

    def round(self, width: int, n: int) -> mx.array:
        """Verify `width` random rows and keep `n`; logits of the last row kept."""
        rows = self.rng.integers(0, 64, width).tolist()
        logits, _, rollback = self.target.verify(mx.array(rows), self.caches)
        rollback.keep(n)
        self.committed += rows[:n]
        return logits[n - 1]

    def check(self, logits: mx.array) -> None:
        model = self.target.model
        fresh = model(mx.array([self.committed]), cache=make_prompt_cache(model))[0, -1]
        error = float(np.array(mx.abs(logits - fresh).max() / mx.abs(fresh).max()))
        limit = ROUNDED if self.target.where == "window and groups" else EXACT
        assert error < limit, f"{len(self.committed)} tokens: {error:.1e}"


def test_the_kinds_are_all_here():
    """A kind that no model below uses."""
    used = {type(leaf) for make in MODELS.values() for leaf in leaves(make_prompt_cache(make()))}
    assert used == set(CACHES)
    lists = [c for c in make_prompt_cache(family("baichuan_m1")) if isinstance(c, CacheList)]
    assert lists


@pytest.mark.parametrize("length", [1, 6, 8, 40])
@pytest.mark.parametrize("n", range(1, WIDTH + 1))
def test_next_logits_are_a_fresh_prefills(target, n, length):
    """A rejected row left in a state, or a kept one lost, once and twice in a row."""
    session = Session(target, seed=n)
    session.prefill(length)
    session.round(WIDTH, n)
    session.check(session.round(1, 1))
    session.round(WIDTH, WIDTH + 1 - n)
    session.round(WIDTH, n)
    session.check(session.round(WIDTH, 1))


def test_random_verdicts(target):
    """An error that shows only behind certain rows of verdicts, or that adds up: 200 rounds of a
    hybrid, a window and a list, fewer of the others."""
    session = Session(target, seed=0)
    session.prefill(3)
    for i in range(200 if target.where in LONG else 60):
        width = int(session.rng.integers(1, WIDTH + 3))
        logits = session.round(width, int(session.rng.integers(1, width + 1)))
        mx.eval(logits)
        if i % 20 == 19:
            session.check(logits)


def test_fewer_rows_may_be_kept_later(target):
    """`keep` that can be called only once: a profile times half of the rows, then keeps one."""
    session = Session(target, seed=1)
    session.prefill(7)
    rows = session.rng.integers(0, 64, WIDTH).tolist()
    logits, _, rollback = target.verify(mx.array(rows), session.caches)
    rollback.keep(3)
    mx.eval(rollback.states())
    rollback.keep(1)
    session.committed += rows[:1]
    session.check(logits[0])
    session.check(session.round(2, 2))


def test_requests_in_turn_do_not_mix(target):
    """A record of one forward used for another's rollback."""
    first, second = Session(target, seed=2), Session(target, seed=3)
    for session in (first, second):
        session.prefill(9)
    rollbacks = []
    for session, n in ((first, 1), (second, 4)):
        rows = session.rng.integers(0, 64, WIDTH).tolist()
        _, _, rollback = target.verify(mx.array(rows), session.caches)
        session.committed += rows[:n]
        rollbacks.append((rollback, n))
    for rollback, n in reversed(rollbacks):
        rollback.keep(n)
    for session in (first, second):
        session.check(session.round(3, 3))


def test_states_that_are_not_run_again_are_seen(target, monkeypatch):
    """Models whose logits hardly depend on their states would pass with any rollback."""
    if not target._mixers.modules:
        pytest.skip("nothing recurrent")
    monkeypatch.setattr(type(target._mixers), "run_again", lambda *args: None)
    session = Session(target, seed=5)
    session.prefill(9)
    session.round(WIDTH, 3)
    with pytest.raises(AssertionError, match=r"e-0[1-3]|e\+00"):
        session.check(session.round(1, 1))


def test_nothing_of_a_round_is_kept(target):
    """A plain step or a prefill that is recorded, or a record that outlives its forward."""
    session = Session(target, seed=4)
    session.prefill(9)
    _, _, rollback = target.verify(mx.array([1]), session.caches)
    assert rollback.calls == []
    assert target._mixers._calls is None and not target._mixers._running
