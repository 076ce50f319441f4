"""The canonical folder read strictly: one clear error for whatever is not exactly the format."""

from __future__ import annotations

import mlx.core as mx
import pytest
from helpers.edits import CONFIG, WEIGHTS, config, cut, nan, tensors
from helpers.pairs import TARGET, checkpoint

import dspark_mlx
from dspark_mlx.calibration.by_temperature import (
    Calibrations,
    read_calibrations,
    write_calibrations,
)
from dspark_mlx.calibration.sts import identity
from dspark_mlx.checkpoint.frequent_tokens import read_ranking, write_ranking
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.drafters.dspark.config import DSparkConfig
from dspark_mlx.errors import InputError
from dspark_mlx.system.files import read_json

CANONICAL = {
    "unknown key": (config(extra=1), ("unknown keys extra", "format's keys only")),
    "missing key": (config(taps=None), ("no taps", "every key of the format")),
    "wrong type": (config(taps="all"), ("taps 'all'", "tuple[int, ...]")),
    "bool for a number": (config(num_layers=True), ("num_layers True", "type int")),
    "another version": (config(format_version=2), ("('dspark_mlx', 2)", "('dspark_mlx', 1)")),
    "negative": (config(hidden_size=-1), ("hidden_size -1", "a positive number")),
    "odd heads": (config(num_heads=3), ("num_heads 3", "whole number of query heads")),
    "quantisation no object": (config(quantization=4), ("quantization 4", "type")),
    "quantisation bits": (
        config(quantization={"bits": 7, "group_size": 64, "exceptions": {}}),
        ("7 bits", "one of"),
    ),
    "quantisation exception": (
        config(quantization={"bits": 4, "group_size": 64, "exceptions": {"fc": 8}}),
        ("exception", "8"),
    ),
    "tensor missing": (tensors(norm__weight=None), ("no tensor norm.weight", "every tensor")),
    "tensor extra": (tensors(more=lambda t: mx.ones(1)), ("unknown tensors more", "only")),
    "NaN": (tensors(norm__weight=nan), ("norm.weight", "NaN", "finite")),
    "cut off": (cut(WEIGHTS, 0.9), (WEIGHTS, "bytes", "a whole safetensors file")),
}


@pytest.mark.parametrize("case", CANONICAL)
def test_a_broken_canonical_folder_is_refused(case, tmp_path):
    """A converted folder, edited since, that loads with a default in place of what it says."""
    edit, parts = CANONICAL[case]
    folder = tmp_path / "drafter"
    convert_drafter(checkpoint("vanilla", tmp_path / "source"), folder, progress=False)
    edit(folder)
    with pytest.raises(InputError) as error:
        dspark_mlx.load(TARGET, folder)
    assert str(folder) in str(error.value)
    assert [part for part in parts if part not in str(error.value)] == []


def test_the_canonical_config_reads_back_equal(tmp_path):
    """A field that is written and not read, or changes on the way."""
    source = checkpoint("embedding_tap", tmp_path / "source")
    written = convert_drafter(source, tmp_path / "out", quantize=True, progress=False)
    assert DSparkConfig.from_dict(read_json(tmp_path / "out" / CONFIG), "x") == written


@pytest.mark.parametrize(
    "settings, parts",
    [
        ({"q_bits": 7}, ("quantisation", "7 bits", "8")),
        ({"q_group_size": 48}, ("quantisation", "group size 48", "128")),
        ({"q_exceptions": {"fc": 1}}, ("quantisation", "1 bits", "8")),
        ({"q_exceptions": {"attn_x": 8}}, ("quantisation exception", "attn_x", "part of fc")),
    ],
)
def test_unknown_quantization_is_refused(settings, parts, tmp_path):
    """Settings that MLX refuses halfway, or exceptions that match nothing and are ignored."""
    source = checkpoint("vanilla", tmp_path / "source")
    with pytest.raises(InputError) as error:
        convert_drafter(source, tmp_path / "out", quantize=True, progress=False, **settings)
    assert [part for part in parts if part not in str(error.value)] == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_a_converted_folder_can_be_quantized(tmp_path):
    """A trained drafter that cannot, other weights than its source's, a lost calibration or count;
    weights that are quantised twice."""
    source, plain = checkpoint("vanilla", tmp_path / "source"), tmp_path / "plain"
    config = convert_drafter(source, plain, progress=False)
    write_calibrations(plain, Calibrations({0.0: identity(config.gamma)}))
    write_ranking(plain, (7, 3))
    convert_drafter(plain, tmp_path / "two", quantize=True, progress=False)
    convert_drafter(source, tmp_path / "one", quantize=True, progress=False)
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    kept = read_calibrations(tmp_path / "two", config.gamma)
    assert kept == read_calibrations(plain, config.gamma) is not None
    assert read_ranking(tmp_path / "two", config.vocab_size) == (7, 3)
    with pytest.raises(InputError, match="weights of 4 bits; expected one with plain weights"):
        convert_drafter(tmp_path / "two", tmp_path / "three", quantize=True, progress=False)
