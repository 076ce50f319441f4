"""Gemma 4's assistants in llama.cpp's GGUF files become what Google's files become."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import pytest
from helpers.gguf_assistant import write_assistant_gguf
from helpers.packaged_assistant import CLUSTERS, OWN, write_assistant

from dspark_mlx.checkpoint.safetensors import read_tensors
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.errors import InputError


@pytest.fixture
def source(tmp_path):
    write_assistant(tmp_path / "source")
    return tmp_path / "source"


def convert(source, folder, **options):
    """The configuration and the tensors that a source becomes."""
    settings = {"target_layers": OWN, "progress": False} | options
    config = convert_drafter(source, folder, **settings)
    return config, read_tensors(folder)


def test_it_is_what_googles_file_becomes(source, tmp_path):
    """A norm in another's place, a wrong rope, window or scale: nothing of it raises."""
    file = write_assistant_gguf(source, tmp_path / "mtp.gguf")
    config, tensors = convert(file, tmp_path / "out")
    wanted, stored = convert(source, tmp_path / "wanted")
    # Numbers of keys that assistants do not make, and arguments that have their default.
    assert {key: config.arguments[key] for key in config.arguments} == {
        key: wanted.arguments[key] for key in config.arguments
    }
    same = {"arguments": wanted.arguments, "num_kv_heads": wanted.num_kv_heads}
    assert replace(config, **same) == wanted
    assert tensors.keys() == stored.keys()
    assert all(mx.array_equal(tensors[name], stored[name]) for name in stored)


def test_packed_matrices_stay_packed(source, tmp_path):
    file = write_assistant_gguf(source, tmp_path / "mtp.gguf", "Q8_0")
    config, tensors = convert(file, tmp_path / "out")
    assert config.quantization is not None and config.quantization.of("lm_head") == (8, 32)
    assert tensors["lm_head.weight"].dtype == mx.uint32


def test_clusters_without_their_number_are_left_out(tmp_path):
    """The metadata does not say how many clusters are taken."""
    write_assistant(tmp_path / "source", **CLUSTERS)
    file = write_assistant_gguf(tmp_path / "source", tmp_path / "mtp.gguf")
    config, tensors = convert(file, tmp_path / "out", target_layers=8, kv_shared_layers=4)
    assert config.num_centroids == 0 and "lm_head.weight" in tensors
    assert (config.sliding_layer, config.full_layer, config.taps) == (2, 3, (1, 2, 7))


BROKEN = [
    ({"embedding_length_out": None}, "no embedding_length_out"),
    ({"attention__key_length_swa": None}, "no attention.key_length_swa"),
    ({"rope__freq_base_swa": None}, "no rope.freq_base_swa"),
    ({"rope__freq_base": 0}, "full_attention.rope_theta 0.0; expected a number from 2"),
    ({"attention__sliding_window_pattern": None}, "no attention.sliding_window_pattern"),
    ({"attention__sliding_window_pattern": [True]}, "attention.sliding_window_pattern [True]"),
    ({"rope__dimension_count_swa": 4}, "rope.dimension_count_swa 4"),
    ({"block_count": 2, "attention__sliding_window_pattern": [True] * 2}, "unknown tensors"),
    ({"embedding_length": 16}, "shape"),
]


@pytest.mark.parametrize("changes, message", BROKEN, ids=[b[1] for b in BROKEN])
def test_what_contradicts_itself_is_named(source, tmp_path, changes, message):
    file = write_assistant_gguf(source, tmp_path / "mtp.gguf", **changes)
    with pytest.raises(InputError) as error:
        convert(file, tmp_path / "out")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_targets_depth_is_asked_for(source, tmp_path):
    file = write_assistant_gguf(source, tmp_path / "mtp.gguf")
    with pytest.raises(InputError, match="--target-layers N, and --kv-shared-layers"):
        convert(file, tmp_path / "out", target_layers=None)
