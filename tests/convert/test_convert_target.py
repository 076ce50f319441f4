"""Targets converted from GGUF and Hugging Face checkpoints: the same numbers and settings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from helpers.gguf_fixtures import checkpoint, float_logits, load_gguf, logits
from helpers.gguf_writer import (
    FFN,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    TEMPLATE,
    VOCAB,
    WIDTH,
    dequantize,
    gguf_tensors,
    llama,
    metadata,
    quantize,
    write,
    write_gguf,
)
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model
from mlx_lm.utils import dequantize_model, load_model, load_tokenizer

from dspark_mlx.convert import target as target_module
from dspark_mlx.convert.gguf.reader import unpermute
from dspark_mlx.convert.target import convert_target


def with_weights_of(model: Model, kind: str, embedding: str) -> Model:
    """The reference with each matrix replaced by NumPy's reading of its `kind`."""
    for name, array in tree_flatten(model.parameters()):
        if array.ndim == 2:
            form = embedding if "embed" in name else kind
            rows = np.array(array)
            heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
            # Blocks run along a row, so the order of the rows does not change them.
            stored = dequantize(quantize(rows, form), form, rows.shape)
            assert heads is None or rows.shape[0] == heads * WIDTH
            model.load_weights([(name, mx.array(stored))], strict=False)
    return model


@pytest.mark.parametrize(
    ("kind", "embedding", "tied", "bias"),
    [
        ("F32", "F32", True, False),
        ("F16", "F16", False, False),
        ("BF16", "BF16", True, True),
        ("Q8_0", "Q8_0", True, False),
        ("Q4_0", "Q8_0", False, True),
        ("Q4_1", "Q8_0", True, False),
        ("Q4_1", "F16", True, False),
    ],
)
def test_the_converted_folder_computes_the_same_logits(
    tmp_path: Path, kind: str, embedding: str, tied: bool, bias: bool
) -> None:
    """Guards the row order of q and k, the names, tying, biases and every block layout."""
    model = llama(tied=tied, bias=bias)
    file = write_gguf(tmp_path / "m.gguf", metadata(), gguf_tensors(model, kind, embedding))
    folder = convert_target(file, tmp_path / "out")
    expected = logits(with_weights_of(model, kind, embedding))
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(float_logits(folder), expected, atol=2e-5)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_quantized_values_equal_numpy_exactly(tmp_path: Path, kind: str) -> None:
    model = llama()
    config, weights = load_gguf(write(tmp_path / "m.gguf", model, kind))
    bits = 8 if kind == "Q8_0" else 4
    assert config["quantization"] == {"group_size": 32, "bits": bits, "mode": "affine"}
    for name, array in tree_flatten(model.parameters()):
        if array.ndim == 1:
            assert np.array_equal(weights[name], array)
            continue
        packed, scales, biases = (
            weights[name.replace("weight", part)] for part in ("weight", "scales", "biases")
        )
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        found = mx.dequantize(packed, scales, biases, group_size=32, bits=bits)
        expected = dequantize(quantize(np.array(array), kind), kind, array.shape)
        assert np.array_equal(np.array(found), expected), name


def test_bfloat16_values_outside_the_range_of_float16_are_kept(tmp_path: Path) -> None:
    """mx.load turns BF16 into float16, where these are zero and infinity."""
    tensors = gguf_tensors(llama(), "BF16")
    array = tensors["blk.0.attn_v.weight"][0].copy()
    array[0, :2] = 2.0**-60, 2.0**100
    tensors["blk.0.attn_v.weight"] = (array, "BF16")
    _, weights = load_gguf(write_gguf(tmp_path / "m.gguf", metadata(), tensors))
    kept = weights["model.layers.0.self_attn.v_proj.weight"]
    assert kept.dtype == mx.bfloat16
    assert kept[0, :2].astype(mx.float32).tolist() == [2.0**-60, 2.0**100]


def test_tensors_that_differ_from_the_majority_have_their_own_entry(tmp_path: Path) -> None:
    tensors = gguf_tensors(llama(), "Q4_1", "Q8_0")
    tensors["blk.1.ffn_up.weight"] = (tensors["blk.1.ffn_up.weight"][0], "F16")
    folder = convert_target(write_gguf(tmp_path / "m.gguf", metadata(), tensors), tmp_path / "out")
    model, config = load_model(folder)
    eight = {"group_size": 32, "bits": 8, "mode": "affine"}
    assert config["quantization"] == {**eight, "bits": 4, "model.embed_tokens": eight}
    assert model.model.embed_tokens.bits == 8
    assert model.model.layers[0].mlp.up_proj.bits == 4
    assert model.model.layers[1].mlp.up_proj.weight.dtype == mx.float16


def test_unpermuted_rows_rotate_by_halves_as_permuted_rows_rotate_by_pairs() -> None:
    """Rotary embedding stated in NumPy both ways: only the right row order makes them agree."""
    rng = np.random.default_rng(0)
    stored, x = rng.normal(size=(HEADS * WIDTH, 32)), rng.normal(size=32)
    half = WIDTH // 2
    angle = 11 * 10000.0 ** (-np.arange(half) / half)
    cos, sin = np.cos(angle), np.sin(angle)

    pairs = (stored @ x).reshape(HEADS, half, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    by_pairs = np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)

    plain = np.array(unpermute(mx.array(stored.astype(np.float32)), HEADS)) @ x
    a, b = plain.reshape(HEADS, 2, half).transpose(1, 0, 2)
    by_halves = np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
    np.testing.assert_allclose(by_halves, by_pairs, atol=1e-5)


def test_the_config_says_what_the_metadata_says(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"tokenizer.ggml.eot_token_id": 0}
    folder = convert_target(write(tmp_path / "m.gguf", **changes), tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "intermediate_size": FFN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": WIDTH,
        "rms_norm_eps": 1e-05,
        "rope_theta": 50000.0,
        "vocab_size": VOCAB,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": [2, 0],
        "pad_token_id": 2,
    }


def llama3_divisors(factor: float) -> np.ndarray:
    """What llama.cpp writes for Llama 3 rope scaling, restated frequency by frequency."""
    divisors = []
    for i in range(WIDTH // 2):
        wavelength = 2 * math.pi * 50000.0 ** (2 * i / WIDTH)
        if wavelength < 8192 / 4:
            divisors.append(1.0)
        elif wavelength > 8192:
            divisors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_rope_scaling_is_kept(tmp_path: Path, kind: str) -> None:
    scaling: dict[str, Any] = {"rope_type": kind, "factor": 4.0}
    prefix = "llama.rope.scaling."
    changes: dict[str, Any] = {prefix + "type": kind, prefix + "factor": 4.0}
    extra: dict[str, Any] = {}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = 32
        changes[prefix + "original_context_length"] = 32
    if kind == "llama3":
        scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        scaling["original_max_position_embeddings"] = 8192
        changes = {}
        extra["rope_freqs.weight"] = (llama3_divisors(4.0), "F32")
    model = llama(rope_scaling=scaling)
    tensors = gguf_tensors(model) | extra
    file = write_gguf(tmp_path / "m.gguf", metadata(**changes), tensors)
    found = float_logits(convert_target(file, tmp_path / "out"))
    np.testing.assert_allclose(found, logits(model), atol=2e-5)
    # 1e-3 apart at least, or the comparison above would pass without any scaling.
    assert np.abs(found - logits(llama())).max() > 1e-3


def test_requantizing_and_casting(tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf", llama(), "Q8_0")
    small = convert_target(file, tmp_path / "q", quantize=True, q_bits=6, q_group_size=64)
    model, config = load_model(small)
    assert (config["quantization"]["bits"], config["quantization"]["group_size"]) == (6, 64)
    layer = model.model.layers[1].mlp.up_proj
    assert layer.scales.dtype == model.model.norm.weight.dtype == mx.float16
    step = np.abs(np.array(layer.scales.astype(mx.float32))).max()
    stored = np.array(llama().model.layers[1].mlp.up_proj.weight)
    stored = dequantize(quantize(stored, "Q8_0"), "Q8_0", stored.shape)
    requantized = dequantize_model(model).model.layers[1].mlp.up_proj.weight
    difference = np.abs(np.array(requantized.astype(mx.float32)) - stored).max()
    assert step / 4 < difference < step  # MLX moves a group's ends so that 0 is a level
    half = load_model(convert_target(file, tmp_path / "half", dtype="float16"))[0]
    kinds = {array.dtype for _, array in tree_flatten(half.parameters())}
    assert kinds == {mx.uint32, mx.float16}


def test_a_hugging_face_checkpoint_becomes_an_mlx_folder(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "hf")
    folder = convert_target(source, tmp_path / "out")
    assert np.array_equal(float_logits(folder), logits(llama()))
    assert load_tokenizer(folder).chat_template == TEMPLATE
    assert not list(folder.glob("*.py"))
    small = convert_target(source, tmp_path / "q", quantize=True, q_bits=8, q_group_size=32)
    assert load_model(small)[1]["quantization"]["bits"] == 8
    assert 0 < np.abs(float_logits(small) - logits(llama())).max() < 0.5
    half = load_model(convert_target(source, tmp_path / "half", dtype="bfloat16"))[0]
    assert half.model.norm.weight.dtype == mx.bfloat16
    assert sorted(p.name for p in tmp_path.iterdir()) == ["half", "hf", "out", "q"]


def test_code_that_mlx_lm_does_not_need_is_no_obstacle(tmp_path: Path) -> None:
    """The code ends the process when it runs, for the model or for the tokenizer."""
    source = checkpoint(tmp_path / "hf", auto_map={"AutoModelForCausalLM": "modeling_tiny.Tiny"})
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["modeling_tiny.Slow", "modeling_tiny.Fast"]}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    assert float_logits(convert_target(source, tmp_path / "out")).shape == (1, 8, VOCAB)


def test_an_output_is_replaced_only_when_asked(tmp_path: Path) -> None:
    file, out = write(tmp_path / "m.gguf"), tmp_path / "out"
    out.mkdir()
    (out / "old.txt").write_text("old")
    convert_target(file, out, overwrite=True)
    assert not (out / "old.txt").exists()
    assert (out / "model.safetensors").exists()


def test_a_hub_id_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoint(tmp_path / "hf")
    asked: list[object] = []

    def resolve(name: str) -> Path:
        asked.append(name)
        return source

    monkeypatch.setattr(target_module, "resolve", resolve)
    convert_target("owner/name", tmp_path / "out")
    assert asked == ["owner/name"]
    assert np.array_equal(float_logits(tmp_path / "out"), logits(llama()))
