"""Bytes and operations of a round, and the least time that they take."""

from __future__ import annotations

import mlx.core as mx
import pytest
from helpers.hand_made import hand_made_profile

from dspark_mlx.benchmark.synthetic import SHAPES, counting_target, random_drafter
from dspark_mlx.engine.state import Engine
from dspark_mlx.profiling.roofline import (
    Rates,
    Work,
    key_value_bytes,
    measured_rates,
    roofline_table,
    work_of,
)
from dspark_mlx.schedulers.full import FullScheduler


def test_the_longer_of_bytes_and_operations_counts():
    work = Work(bytes=2_000_000, weights=4_000_000)
    assert work.milliseconds(1, 1e9, 1e12) == pytest.approx(2.0)
    assert work.milliseconds(1000, 1e9, 1e12) == pytest.approx(8.0)
    assert work.milliseconds(1000, 1e9, float("inf"), extra=1_000_000) == pytest.approx(3.0)


@pytest.mark.parametrize(("bits", "bytes_each"), [(16, 2), (8, 1 + 4 / 64), (4, 0.5 + 4 / 64)])
def test_work_is_that_of_the_matrices(bits: int, bytes_each: float):
    """Packed words counted as weights; the table of embeddings counted as if it were all read."""
    shape = SHAPES["tiny"]
    target, _ = work_of(Engine(counting_target(shape, bits), None, FullScheduler()))
    query, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = shape.hidden * (2 * query + 2 * keys + 3 * shape.intermediate)
    weights = shape.layers * layer + shape.vocabulary * shape.hidden
    assert target.bytes == pytest.approx(weights * bytes_each, rel=0.02)
    # Scales and biases are matrices too, of a 64th each.
    assert weights <= target.weights <= weights * 1.04


def test_the_table_has_measured_and_predicted_times():
    """A prediction that reads as a measurement."""
    shape = SHAPES["tiny"]
    target = counting_target(shape, 4)
    engine = Engine(target, random_drafter(target, shape), FullScheduler())
    kv_bytes = 2 * 2 * shape.layers * shape.kv_heads * shape.head_dim
    assert key_value_bytes(engine, 10) == 10 * kv_bytes
    profile = hand_made_profile([10.0 + rows for rows in range(1, 9)], draft=2.25, plain=9.75)
    table = roofline_table(engine, profile, Rates(1e11, 1e12))
    measured, predicted = table.split("predicted, not measured")
    assert "100 GB/s and 1.00 Tflop/s, measured here" in measured and "verify 8" in measured
    assert all(f" {ms:.2f} " in measured for ms in (9.75, 2.25, 12, 14, 18))
    lines = [line for line in predicted.splitlines() if "Apple M" in line]
    assert len(lines) > 12
    assert all("predicted" in line or "no published figure" in line for line in lines)


def test_rates_are_positive(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dspark_mlx.profiling.roofline._BYTES", 1 << 16)
    monkeypatch.setattr("dspark_mlx.profiling.roofline._SIZE", 64)
    rates = measured_rates(mx.float32)
    assert rates.bandwidth > 0 and rates.operations > 0
