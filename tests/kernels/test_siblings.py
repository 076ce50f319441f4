"""Matrices that multiply the same rows, computed by one call of a kernel."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from kernels.fakes import CLOCK, KERNELS

from dspark_mlx.benchmark.synthetic import SHAPES, counting_target
from dspark_mlx.kernels.decision import Decision
from dspark_mlx.kernels.guard import Guard
from dspark_mlx.kernels.linears import linear_of, quantized_linears
from dspark_mlx.kernels.siblings import AppliedSiblings, find_siblings
from dspark_mlx.kernels.store import STOCK, VerdictStore, Where
from dspark_mlx.kernels.trial import try_kernels
from dspark_mlx.kernels.whole import TOGETHER

HERE = Where("gpu Fake", "Fake OS 1", "0.32.4")
ROWS = 5


class Net(nn.Module):
    """Three matrices of one x, of which one has a bias, and two that read what they give."""

    def __init__(self) -> None:
        super().__init__()
        mx.random.seed(3)
        self.q, self.k, self.v = (nn.Linear(64, n, bias=n == 32) for n in (96, 64, 32))
        self.o, self.odd = nn.Linear(96, 64, bias=False), nn.Linear(96, 64, bias=False)
        nn.quantize(self, 32, 8, class_predicate=lambda name, _: name != "odd")
        self.odd = nn.QuantizedLinear.from_linear(self.odd, 32, 4)
        mx.eval(self.parameters())

    def __call__(self, x: mx.array) -> mx.array:
        y = mx.tanh(self.q(x) + mx.concatenate([self.k(x), self.v(x)], axis=-1))
        return self.o(y) + self.odd(y)


def x_of(rows: int) -> mx.array:
    return mx.sin(mx.arange(rows * 64).reshape(1, rows, 64) * 1.7)


def kernels_of(net: nn.Module, name: str, rows: int = ROWS):
    return {linear: {rows: KERNELS[name]} for linear in quantized_linears(net)}


def found_in(net: Net, name: str = "together"):
    return find_siblings(net, ROWS, lambda: net(x_of(ROWS)), kernels_of(net, name))


def test_siblings_are_those_that_read_the_very_same_rows():
    """Matrices of other bits; a kernel that cannot compute them together."""
    net = Net()
    (siblings,) = found_in(net)
    assert siblings.modules == (net.q, net.k, net.v)
    assert [product.outputs for product in siblings.products(ROWS)] == [96, 64, 32]
    assert found_in(net, "good") == []


def test_a_network_of_a_real_family_has_them_in_every_layer():
    shape = SHAPES["tiny"]
    network = counting_target(shape, 8).model
    found = find_siblings(
        network,
        ROWS,
        lambda: network(mx.arange(ROWS)[None]),
        kernels_of(network, "together"),
    )
    layer = network.layers[0]
    attention, mlp = layer.self_attn, layer.mlp
    assert len(found) == 2 * shape.layers
    assert found[0].modules == (attention.q_proj, attention.k_proj, attention.v_proj)
    assert set(map(id, found[1].modules)) == {id(mlp.gate_proj), id(mlp.up_proj)}


def test_each_gives_its_own_output_and_the_network_is_as_before_after_close(monkeypatch):
    """One output for another; a sibling that is called alone, with other rows or in other types."""
    net = Net()
    classes = [type(module) for _, module in net.named_modules()]
    expected, calls = net(x_of(ROWS)), []
    kernel = type(KERNELS["together"])
    together = kernel.together

    def counted(self, x, matrices, products):
        calls.append(len(products))
        return together(self, x, matrices, products)

    monkeypatch.setattr(kernel, "together", counted)
    applied = AppliedSiblings(found_in(net))
    assert mx.array_equal(net(x_of(ROWS)), expected).item() and calls == [3]
    x, other = x_of(ROWS), x_of(ROWS) + 1
    q, alone, v = net.q(x), net.k(other), net.v(x)
    again = net.v(x)
    assert calls == [3, 3]
    for y, module, given in ((q, "q", x), (alone, "k", other), (v, "v", x), (again, "v", x)):
        assert mx.array_equal(y, Net()[module](given)).item()
    net(x_of(ROWS - 1)), net(x_of(ROWS).astype(mx.float16))
    assert calls == [3, 3]
    applied.close()
    assert [type(module) for _, module in net.named_modules()] == classes
    assert mx.array_equal(net(x_of(ROWS)), expected).item() and calls == [3, 3]


def decide(name: str) -> tuple[Decision, Net]:
    net = Net()

    def trial(trials):
        return try_kernels(trials, "tests.kernels.fakes")

    def forward(rows: int) -> mx.array:
        return net(x_of(rows))[0]

    store = VerdictStore(None)
    guard = Guard(net, forward, [KERNELS[name]], HERE, store, trial, CLOCK)
    decision = guard.decide(2)
    again = Guard(net, forward, [KERNELS[name]], HERE, store, lambda trials: {}, CLOCK).decide(2)
    assert again.together == decision.together
    return decision, net


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("together", "a whole forward reaches"),
        ("together-slow", "which is too little"),
        ("together-off", "has other bits in product 3 of 3 together"),
    ],
)
def test_the_guard_proves_it_as_it_proves_kernels(
    name: str, reason: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(Path(__file__).parents[2])
    decision, net = decide(name)
    assert {linear_of(module) for module in (net.q, net.k, net.v)} <= set(decision.chosen)
    assert decision.together is not None and reason in decision.together.reason
    won = name == "together"
    assert decision.together.winner == (TOGETHER if won else STOCK)
    assert len(decision.siblings) == won
