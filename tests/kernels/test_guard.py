"""The guard: whatever a kernel does, MLX's product stays in its place, with the reason."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from helpers.slow_cases import some_slow
from kernels.fakes import CLOCK, KERNELS, Fake

from dspark_mlx.kernels.decision import Decision
from dspark_mlx.kernels.forwards import AGREE
from dspark_mlx.kernels.guard import Guard, raced_rows
from dspark_mlx.kernels.linears import Applied, quantized_linears
from dspark_mlx.kernels.race import medians
from dspark_mlx.kernels.store import STOCK, VerdictStore, Where
from dspark_mlx.kernels.trial import try_kernels

HERE = Where("gpu Fake", "Fake OS 1", "0.32.4")
CHILD = "tests.kernels.fakes"


class Net(nn.Module):
    """Three matrices of one shape, one of another shape and of other bits, and one of 6 bits."""

    def __init__(self) -> None:
        super().__init__()
        mx.random.seed(1)
        self.layers = [nn.Linear(64, 64, bias=i == 1) for i in range(3)]
        self.head = nn.Linear(64, 96, bias=False)
        self.odd = nn.Linear(64, 64, bias=False)
        for each in (*self.layers, self.head, self.odd):
            each.weight = mx.random.normal(each.weight.shape) / 8
        self.layers = [nn.QuantizedLinear.from_linear(layer, 32, 4) for layer in self.layers]
        self.head = nn.QuantizedLinear.from_linear(self.head, 32, 8)
        self.odd = nn.QuantizedLinear.from_linear(self.odd, 32, 6)
        # The word that one fake is wrong for; see `fakes.off_on_one`.
        first = self.layers[2].weight
        self.layers[2].weight = mx.concatenate(
            [mx.array([[0x01234567, *first[0, 1:].tolist()]], mx.uint32), first[1:]]
        )
        mx.eval(self.parameters())

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers:
            x = mx.tanh(layer(x))
        return self.head(self.odd(x))


def forward_of(net: Net):
    def forward(rows: int) -> mx.array:
        return net(mx.sin(mx.arange(rows * 64).reshape(1, rows, 64) * 1.7))[0]

    return forward


def decide(
    *names: str,
    store: VerdictStore | None = None,
    where: Where = HERE,
    kernels: list[Fake] | None = None,
    most: int = 2,
    child: bool = False,
) -> tuple[Decision, Net]:
    """The guard's decision on some fakes, which a child process tries first where `child`."""
    net = Net()
    chosen = kernels or [KERNELS[name] for name in names]

    def trial(trials):
        return try_kernels(trials, CHILD) if child else {}

    store = VerdictStore(None) if store is None else store
    guard = Guard(net, forward_of(net), chosen, where, store, trial, CLOCK)
    return guard.decide(most), net


@pytest.fixture(autouse=True)
def at_the_top(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child process finds tests.kernels.fakes from there."""
    monkeypatch.chdir(Path(__file__).parents[2])


def refusals(decision: Decision) -> set[str]:
    return {reason for race in decision.races for reason in race.verdict.refused.values()}


def test_a_good_kernel_is_chosen_for_the_shapes_that_it_computes():
    """A guard that lets nothing through; a shape of other bits that gets a kernel."""
    decision, net = decide("good", most=4, child=True)
    linears = quantized_linears(net)
    assert {linear.bits for linear in decision.chosen} == {4, 8}
    assert {linear.bits for linear in linears} == {4, 6, 8}
    for by_rows in decision.chosen.values():
        assert {rows: kernel.name for rows, kernel in by_rows.items()} == dict.fromkeys(
            (2, 3, 4), "good"
        )
    (odd,) = {race.verdict.reason for race in decision.races if race.product.bits == 6}
    assert odd == "no kernel for it"


FAILURES = {
    "crash": "ended its process: SIGSEGV",
    "leave": "ended its process with status 3: no message",
    "refuse": "RuntimeError: Failed to compile kernel: line 3: no such thing",
    "nan": "gives numbers that are not finite",
}


@pytest.mark.parametrize("name", some_slow(FAILURES, ("crash", "refuse", "nan")))
def test_what_fails_in_a_process_of_its_own_is_refused(name: str):
    """A crash or a compiler's error that takes the user's process along."""
    decision, _ = decide(name, child=True)
    assert decision.chosen == {} and decision.forwards == {}
    assert refusals(decision) >= {FAILURES[name]}


def test_a_kernel_that_hangs_is_refused():
    """A GPU time-out that hangs the user's process."""
    product = next(iter(quantized_linears(Net()))).product(2)
    failed = try_kernels([("hang", product)], CHILD, 1.0)
    assert failed == {("hang", product): "did not end in 1 s"}


def test_the_next_kernel_is_tried_after_a_crash():
    """One bad kernel that takes the good ones along."""
    product = next(iter(quantized_linears(Net()))).product(2)
    assert set(try_kernels([("leave", product), ("good", product)], CHILD)) == {("leave", product)}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("off-on-one", "of 3, recorded input"),
        ("narrow", "gives mlx.core.float32 [2, 63]"),
        ("inexact", "has other bits than one row at a time"),
    ],
)
def test_wrong_numbers_are_refused_with_the_matrix(name: str, reason: str):
    """A kernel that is wrong on one layer's weights alone."""
    decision, _ = decide(name)
    assert any(reason in found for found in refusals(decision)), refusals(decision)
    assert not any(linear.bits == 4 for linear in decision.chosen)


@pytest.mark.parametrize("name", ["slow", "no-gain"])
def test_a_kernel_that_wins_by_too_little_is_not_used(name: str):
    decision, _ = decide(name)
    assert decision.chosen == {}
    reasons = [race.verdict.reason for race in decision.races if race.product.bits == 4]
    assert all("too little" in reason for reason in reasons) and reasons


def test_a_whole_forward_overrules_what_wins_alone():
    """A kernel that is quick alone, and slows the model down."""
    decision, _ = decide("alone")
    assert decision.chosen == {}
    assert {race.verdict.winner for race in decision.races if race.product.bits != 6} == {"alone"}
    assert decision.forwards[2].winner == STOCK
    assert "whole forward" in decision.forwards[2].reason


def test_a_whole_forward_that_differs_overrules(monkeypatch: pytest.MonkeyPatch):
    """Errors that pass on every matrix and add up in the model."""
    monkeypatch.setitem(AGREE, mx.float32, 1e-9)
    decision, _ = decide("drifts")
    assert decision.chosen == {} and "logits differ" in decision.forwards[2].reason


def test_verdicts_are_kept_until_mlx_or_the_text_changes(tmp_path: Path):
    """A race in every start; a verdict on another MLX version or another text."""
    path = tmp_path / "profiles" / "kernels.json"
    first, _ = decide("good", store=VerdictStore(path))
    again, _ = decide("good", store=VerdictStore(path))
    assert [race.verdict for race in again.races if race.known]
    assert again.chosen == first.chosen
    newer = replace(HERE, mlx="0.33.0")
    other, _ = decide("good", store=VerdictStore(path), where=newer)
    assert not any(race.known for race in other.races)
    text = [replace(KERNELS["good"], source="another text")]
    assert isinstance(text[0], Fake)
    changed, _ = decide(store=VerdictStore(path), kernels=text)
    assert not any(race.known for race in changed.races)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"format": "x"}',
        '{"format": "dspark_mlx kernel '
        'races", "format_version": 1, "verdicts": {"a": {"winner": 3}}}',
    ],
)
def test_a_damaged_store_costs_a_race(tmp_path: Path, content: str):
    path = tmp_path / "kernels.json"
    path.write_text(content)
    store = VerdictStore(path)
    assert store.complaint and str(path) in store.complaint
    decision, _ = decide("good", store=store)
    assert decision.chosen and VerdictStore(path).complaint is None


def test_applied_kernels_are_undone():
    """Another model of the process with our classes; modules that keep them after close."""
    net, other = Net(), Net()
    forward = forward_of(net)
    before, classes = forward(3), [type(m) for _, m in net.named_modules()]
    linear = next(iter(quantized_linears(net)))
    applied = Applied(net, {linear: {3: Fake("double", bend=lambda y, weight: 2 * y)}})
    assert not mx.array_equal(forward(3), before).item()
    assert mx.array_equal(forward(2), forward_of(other)(2)).item()
    assert mx.array_equal(forward_of(other)(3), before).item()
    applied.close()
    assert mx.array_equal(forward(3), before).item()
    assert [type(m) for _, m in net.named_modules()] == classes


@pytest.mark.parametrize(("seconds", "turns"), [(0.0, 7), (30.0, 15), (1e9, 70)])
def test_turns_go_on_until_they_took_long_enough(seconds: float, turns: int):
    """A race of a few milliseconds that scatter decides."""
    taken = {"own": 0, "other": 0}

    def timed(name: str) -> float:
        taken[name] += 1
        return 1.0

    medians({name: partial(timed, name) for name in taken}, 7, seconds)
    assert taken == {"own": turns + 1, "other": turns + 1}


def test_the_rows_of_a_block_are_raced():
    assert raced_rows(8) == [2, 4, 8]
    assert raced_rows(6) == [2, 4, 6]
    assert raced_rows(2) == [2]
    assert raced_rows(40) == [2, 4, 8, 16]
