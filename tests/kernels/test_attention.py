"""Another function in the place of mlx-lm's attention, in one network alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from kernels.fakes import ATTENTIONS, CLOCK, Fake, FakeAttention
from mlx_lm.models import qwen3
from mlx_lm.models.cache import make_prompt_cache

from dspark_mlx.benchmark.synthetic import SHAPES, counting_target
from dspark_mlx.kernels.attention import AppliedAttention, Heads, attention_forms
from dspark_mlx.kernels.cuda.few_rows_attention import FewRowsAttention
from dspark_mlx.kernels.decision import Decision
from dspark_mlx.kernels.guard import Guard, backend_here
from dspark_mlx.kernels.store import STOCK, VerdictStore, Where
from dspark_mlx.kernels.trial import try_kernels
from dspark_mlx.kernels.whole import ALL

SHAPE = SHAPES["tiny"]
HEADS = Heads(5, SHAPE.heads, SHAPE.kv_heads, SHAPE.head_dim, mx.bfloat16)


def run(network, rows: int, before: int = 0) -> mx.array:
    cache = make_prompt_cache(network)
    if before:
        mx.eval(network(mx.arange(before)[None], cache=cache))
    return network(mx.arange(rows)[None], cache=cache)[0]


def applied(network, attend, max_keys: int = 20) -> AppliedAttention:
    return AppliedAttention(network, attend, lambda heads: heads.rows > 2, max_keys)


def test_the_forms_of_a_network_are_found():
    network = counting_target(SHAPE, 4).model
    classes = [type(module) for _, module in network.named_modules()]
    assert attention_forms(network, lambda: mx.eval(run(network, 5))) == {HEADS}
    assert [type(module) for _, module in network.named_modules()] == classes


def test_only_one_network_and_only_what_fits_goes_through_it():
    """Another model of the process; single rows; contexts that are too long; after `close`."""
    network, other = (counting_target(SHAPE, 4).model for _ in "ab")
    calls: list[tuple[int, ...]] = []

    def attend(q, k, v, scale, end) -> mx.array:
        assert end is None
        calls.append((q.shape[2], k.shape[2]))
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal")

    own = run(network, 5, 9)
    changed = applied(network, attend)
    assert changed.count == SHAPE.layers
    assert mx.array_equal(run(network, 5, 9), own).item()
    assert calls == [(9, 9)] * SHAPE.layers + [(5, 14)] * SHAPE.layers
    calls.clear()
    run(network, 1, 2), run(network, 5, 25), run(other, 5)
    assert calls == []
    changed.close()
    run(network, 5)
    assert calls == []
    assert qwen3.Attention.__call__.__globals__["scaled_dot_product_attention"].__module__ == (
        "mlx_lm.models.base"
    )


def decide(name: str, child: bool = False) -> Decision:
    network = counting_target(SHAPE, 16).model

    def trial(trials):
        return try_kernels(trials, "tests.kernels.fakes") if child else {}

    guard = Guard(
        network,
        lambda rows: run(network, rows),
        [],
        Where("gpu", "OS", "0"),
        VerdictStore(None),
        trial,
        CLOCK,
        attentions=[ATTENTIONS[name]],
    )
    return guard.decide(5)


def test_attention_that_is_right_and_quick_is_chosen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    decision = decide("attention", child=True)
    assert isinstance(decision.attention, FakeAttention)
    assert decision.attentions["attention"].winner == "attention"


@pytest.mark.parametrize(
    ("name", "reason", "child"),
    [
        ("attention-off", "is off by", False),
        ("attention-slow", "which is too little", False),
        ("attention-crash", "ended its process: SIGSEGV", True),
    ],
)
def test_attention_that_fails_stays_mlxs(
    name: str, reason: str, child: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(Path(__file__).parents[2])
    decision = decide(name, child)
    assert decision.attention is None
    verdict = decision.attentions[name]
    assert verdict.winner == STOCK and reason in verdict.reason


def test_what_the_kernel_cannot_compute_is_said():
    kernel = FewRowsAttention()
    assert kernel.why_not(Heads(8, 32, 8, 128, mx.bfloat16)) is None
    assert kernel.why_not(Heads(3, 32, 8, 128, mx.bfloat16)) == "3 rows"
    assert kernel.why_not(Heads(8, 32, 8, 80, mx.float16)) == "heads of 80 in mlx.core.float16"


@pytest.mark.skipif(backend_here() != "cuda", reason="needs MLX's CUDA backend")
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_the_kernel_is_right_against_float64(dtype: mx.Dtype):
    for rows, keys, width in ((4, 4, 64), (8, 300, 128), (16, 1024, 256)):
        heads = Heads(rows, 8, 2, width, dtype)
        q, k, v = heads.random(keys)
        got = np.array(FewRowsAttention()(q, k, v, 0.1).astype(mx.float32))
        a, b, c = (np.array(x.astype(mx.float32), np.float64) for x in (q, k, v))
        scores = 0.1 * a @ np.repeat(b, 4, 1).swapaxes(2, 3)
        later = np.arange(keys)[None] > np.arange(keys - rows, keys)[:, None]
        weights = np.exp(np.where(later, -np.inf, scores))
        right = weights / weights.sum(-1, keepdims=True) @ np.repeat(c, 4, 1)
        limit = {mx.float32: 1e-5, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}[dtype]
        assert np.abs(got - right).max() < limit * np.abs(right).max()


def test_products_and_attention_that_win_only_together_are_chosen():
    """A part whose gain is hidden by the other part, which is raced without it."""
    network = counting_target(replace(SHAPE, layers=2, vocabulary=256), 8).model
    used: set[str] = set()
    kernel = Fake("products", inside=0.0, act=lambda *_: used.add("products"))
    attention = FakeAttention("attention", gain=0.0, act=lambda *_: used.add("attention"))

    def forward(rows: int) -> mx.array:
        used.clear()
        logits = run(network, rows)
        CLOCK.now -= 300 if used == {"products", "attention"} else 0
        return logits

    def decided(*attentions: FakeAttention) -> Decision:
        here, store = Where("gpu", "OS", "0"), VerdictStore(None)
        guard = Guard(
            network, forward, [kernel], here, store, lambda _: {}, CLOCK, attentions=attentions
        )
        return guard.decide(5)

    both, alone = decided(attention), decided()
    assert both.attention is attention and both.attentions["attention"].winner == "attention"
    assert [both.forwards[rows].winner for rows in (2, 4, 5)] == [STOCK, ALL, ALL]
    assert all(set(by_rows) == {3, 4, 5} for by_rows in both.chosen.values()) and both.chosen
    assert alone.chosen == {} and alone.attention is None
