"""Drafters that mlx-lm's own quantisation packed: kept where they can be, decoded where not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from helpers.pairs import checkpoint

from dspark_mlx.checkpoint.safetensors import read_tensors
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.drafters.methods import read_config
from dspark_mlx.errors import InputError
from dspark_mlx.pairs.stored import read_drafter
from dspark_mlx.system.files import read_json

MODES = (("affine", 4, 64), ("affine", 8, 32), ("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16))
OWN = "layers.0.mlp.up_proj"


def packed(
    folder: Path, mode: str, bits: int, group_size: int, own: dict[str, Any] | None = None
) -> None:
    """A golden drafter as mlx-lm packs it.

    Args:
        folder: to write.
        mode, bits, group_size: of all matrices but OWN.
        own: bits and group size of OWN.
    """
    checkpoint("vanilla", folder)
    whole = {"group_size": group_size, "bits": bits, "mode": mode}
    config = read_json(folder / "config.json")
    config["quantization"] = config["quantization_config"] = {
        **whole,
        **({OWN: own} if own else {}),
    }
    (folder / "config.json").write_text(json.dumps(config))
    stored = {}
    for name, array in read_tensors(folder).items():
        stem = name.removesuffix(".weight")
        if array.ndim != 2 or array.shape[1] % 64 or "confidence" in name:
            stored[name] = array
            continue
        form = {**whole, **(own or {})} if stem == OWN else whole
        parts = mx.quantize(array.astype(mx.float32), **form)
        stored |= dict(zip((name, f"{stem}.scales", f"{stem}.biases"), parts, strict=False))
    mx.save_safetensors(str(folder / "model.safetensors"), stored)


@pytest.mark.parametrize(("mode", "bits", "group_size"), MODES)
def test_it_is_taken_as_it_is(tmp_path, mode, bits, group_size):
    """Affine triples refused as unknown tensors or rounded twice; bytes taken for weights."""
    packed(tmp_path / "source", mode, bits, group_size)
    config = convert_drafter(tmp_path / "source", tmp_path / "out", progress=False)
    kept = read_drafter(tmp_path / "out")
    assert config.quantization is not None and config.quantization.mode_of("fc") == mode
    assert (config.quantization.bits, config.quantization.group_size) == (bits, group_size)
    source = read_tensors(tmp_path / "source")
    parts = ("fc.weight", "fc.scales", *(["fc.biases"] if mode == "affine" else []))
    for name in parts:
        assert mx.array_equal(kept.tensors[name], source[name])
    assert ("fc.biases" in kept.tensors) == (mode == "affine")


def test_a_module_of_its_own_form(tmp_path):
    """What mlx-lm writes of single modules, read as the form of all."""
    packed(tmp_path / "source", "affine", 4, 64, {"bits": 8, "group_size": 32})
    convert_drafter(tmp_path / "source", tmp_path / "out", progress=False)
    config = read_config(read_json(tmp_path / "out" / "config.json"), "out")
    assert config.quantization is not None and config.quantization.of("fc") == (4, 64)
    assert config.quantization.of(OWN) == (8, 32)


def test_a_module_that_is_as_all(tmp_path):
    """`true` for a module, as mlx-lm may write it, refused as no quantisation."""
    packed(tmp_path / "source", "affine", 4, 64)
    config = read_json(tmp_path / "source" / "config.json")
    config["quantization"][OWN] = True
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    made = convert_drafter(tmp_path / "source", tmp_path / "out", progress=False)
    assert made.quantization is not None and made.quantization.of(OWN) == (4, 64)


@pytest.mark.parametrize(
    ("mode", "bits", "group_size", "byte"),
    [("mxfp4", 4, 32, 255), ("mxfp8", 8, 32, 247), ("nvfp4", 4, 16, 127)],
)
def test_scales_that_are_no_numbers_are_refused(tmp_path, mode, bits, group_size, byte):
    """Bytes of scales taken for whole numbers, which are always finite."""
    packed(tmp_path / "source", mode, bits, group_size)
    file = str(tmp_path / "source" / "model.safetensors")
    tensors = dict(mx.load(file))
    mx.eval(tensors)
    scales = tensors["fc.scales"]
    scales[1, 0] = byte
    mx.save_safetensors(file, tensors | {"fc.scales": scales})
    with pytest.raises(InputError, match=r"fc.scales: found NaN or infinite"):
        convert_drafter(tmp_path / "source", tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_it_is_quantized_anew_where_asked(tmp_path):
    packed(tmp_path / "source", "mxfp4", 4, 32)
    config = convert_drafter(
        tmp_path / "source", tmp_path / "out", quantize=True, q_bits=8, progress=False
    )
    assert config.quantization is not None and config.quantization.of("fc") == (8, 64)


BAD = {
    "not declared": (None, "no quantization for"),
    "no object": (4, "no quantization for"),
    "mode": ({"bits": 4, "group_size": 64, "mode": "nf4"}, "mode 'nf4'"),
    "bits": ({"bits": 7, "group_size": 64}, "7 bits"),
    "group": ({"bits": 4, "group_size": 0}, "group size 0"),
    "another form": ({"bits": 8, "group_size": 64}, "affine words, scales and biases of 8 bits"),
    "no scales of bytes": ({"bits": 4, "group_size": 32, "mode": "mxfp4"}, "mode mxfp4"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_form_that_is_not_what_is_stored_is_refused(tmp_path, case):
    """Packed words read under another form, or without any."""
    said, pattern = BAD[case]
    packed(tmp_path / "source", "affine", 4, 64)
    config = read_json(tmp_path / "source" / "config.json") | {"quantization": said}
    del config["quantization_config"]
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=pattern):
        convert_drafter(tmp_path / "source", tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
