"""The pair whose text is known, and the measurement on it."""

from __future__ import annotations

import pytest
from helpers.slow_cases import some_slow

from dspark_mlx.benchmark.synthetic import SHAPES, counting_target
from dspark_mlx.benchmark.synthetic_run import SyntheticRow, measure


def test_taps_are_layers_of_every_shape():
    for shape in SHAPES.values():
        assert len(set(shape.taps)) == 5 and 0 <= min(shape.taps) <= max(shape.taps) < shape.layers


@pytest.mark.parametrize("bits", some_slow([16, 4], [4]))
def test_the_text_counts_upwards(bits: int, monkeypatch: pytest.MonkeyPatch):
    """A benchmark of a text that nobody checks; acceptance that is not what was asked for."""
    monkeypatch.setattr("dspark_mlx.benchmark.synthetic_run._WARM", 4)
    prepared: list[object] = []
    row = measure(SHAPES["tiny"], bits, 0.8, 16, 1, prepared.append)
    assert len(prepared) == 1 and row.bits == bits
    assert 1.5 < row.tokens < 8 and row.round_ms > 0 and row.plain_ms > 0
    assert row.speedup == pytest.approx(row.plain_ms * row.tokens / row.round_ms)


def test_the_target_is_quantized_as_asked():
    assert counting_target(SHAPES["tiny"], 8).model.lm_head.bits == 8


def test_a_line_has_what_was_measured():
    lines = [
        SyntheticRow(16, 5.0, 10.0, 4.0, (0, 0), False, False).line(),
        SyntheticRow(4, 5.0, 8.0, 4.0, (5, 6), True, True).line(),
    ]
    assert (
        lines[0].startswith("bf16")
        and "2.00x" in lines[0]
        and lines[0].endswith(", MLX, by Python")
    )
    assert "2.50x" in lines[1] and lines[1].endswith("5 of 6 shapes, own, compiled")
