"""ds4's GGUF files become what the head inside a DeepSeek V4 release becomes."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from helpers.gguf_ds4 import EXPERT, decoded, write_ds4

from dspark_mlx.checkpoint.safetensors import read_tensors
from dspark_mlx.convert.drafter import convert_drafter, read_as_canonical
from dspark_mlx.errors import InputError
from dspark_mlx.system.files import read_json, write_json


def test_it_is_what_the_release_becomes(tmp_path):
    """A stage, an expert or a projection in another's place: nothing of it raises."""
    config, tensors = read_as_canonical(write_ds4(tmp_path / "ds4"))
    wanted, values = decoded()
    assert replace(config, quantization=None) == replace(wanted, quantization=None)
    assert tensors.keys() == values.keys()
    for name, array in values.items():
        assert np.array_equal(np.array(tensors[name].astype(mx.float32)), array), name


def test_packed_experts_stay_packed(tmp_path):
    """The words of another expert."""
    file = write_ds4(tmp_path / "ds4", {"_exps": "Q8_0"})
    config = convert_drafter(file, tmp_path / "out", progress=False)
    assert config.quantization.of("layers.0.ffn.experts.1.w2") == (8, 32)
    assert config.quantization.of("layers.0.attn.wq_a") is None
    stored, (_, values) = read_tensors(tmp_path / "out"), decoded()
    for name, array in values.items():
        if EXPERT.fullmatch(name):
            stem = name.removesuffix(".weight")
            parts = [stored[f"{stem}.{part}"] for part in ("weight", "scales", "biases")]
            found = np.array(mx.dequantize(*parts, group_size=32, bits=8).astype(mx.float32))
            assert np.abs(found - array).max() < 0.01 * np.abs(array).max(), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": None}, "no block_size"),
        ({"target_layer_ids": None}, "no target_layer_ids"),
        ({"markov_rank": 3}, "markov_head"),
        ({"block_size": 0}, "block_size 0"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(tmp_path, changes, message):
    file = write_ds4(tmp_path / "ds4", **changes)
    with pytest.raises(InputError, match=message):
        convert_drafter(file, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_the_releases_config_must_lie_beside_it(tmp_path):
    file = write_ds4(tmp_path / "ds4")
    beside = file.with_name("config.json")
    release = read_json(beside)
    write_json(beside, release | {"model_type": "llama"})
    with pytest.raises(InputError, match="'llama'; expected 'deepseek_v4'"):
        convert_drafter(file, tmp_path / "out", progress=False)
    write_json(beside, release | {"moe_intermediate_size": release["moe_intermediate_size"] * 2})
    with pytest.raises(InputError, match="experts"):
        convert_drafter(file, tmp_path / "out", progress=False)
    beside.unlink()
    with pytest.raises(InputError, match=r"no file; expected the config\.json of the DeepSeek V4"):
        convert_drafter(file, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
