"""Drafters and targets in every quantised type of GGUF: the same numbers as the formulas give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from helpers import gguf_kinds
from helpers.gguf_fixtures import float_logits, logits
from helpers.gguf_scalar import SIZES
from helpers.gguf_writer import Raw, write_gguf
from helpers.numpy_drafter import reference
from helpers.packaged_case import ANCHOR, Case, close
from helpers.packaged_parts import TARGET_DEPTH, VOCAB
from helpers.slow_cases import some_slow
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model
from safetensors.numpy import load_file

from dspark_mlx.checkpoint.safetensors import read_tensors
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.convert.gguf.blocks import PACKED
from dspark_mlx.convert.gguf.header import read_header
from dspark_mlx.convert.target import convert_target
from dspark_mlx.errors import InputError

# llama.cpp's mixtures: some matrices have more bits than most, and some rows fit no block of 256.
MIXED = {"v_proj": "Q6_K", "lm_head": "Q6_K", "down_proj": "Q5_0"}
FORMS = {kind: PACKED.get(kind) for kind in SIZES}


class KindCase(Case):
    """A drafter in a GGUF file of one type."""

    def __init__(self, folder: Path, kind: str, kinds: dict[str, str] | None = None) -> None:
        self.source, self.out = folder / "source", folder / "out"
        self.file = gguf_kinds.drafter(self.source, folder / "drafter.gguf", kind, kinds)
        rng = np.random.default_rng(5)
        self.embed, self.head = rng.normal(0, 0.7, (2, VOCAB, gguf_kinds.WIDTH))
        width = gguf_kinds.WIDTH
        self.taps = {i: rng.normal(0, 1, (13, width)) for i in range(-1, TARGET_DEPTH)}
        self.values = load_file(self.source / "model.safetensors")

    def convert(self, **options):
        return convert_drafter(self.file, self.out, progress=False, **options)

    def stored(self, config, base: str) -> np.ndarray:
        """A stored matrix' values in float32."""
        tensors = read_tensors(self.out)
        form = config.quantization.of(base) if config.quantization else None
        if form is None:
            return np.array(tensors[f"{base}.weight"].astype(mx.float32))
        mode = config.quantization.mode_of(base)
        parts = [tensors[f"{base}.{x}"] for x in ("weight", "scales")]
        if mode == "affine":
            parts = [parts[0], parts[1].astype(mx.float32)]
            parts += [tensors[f"{base}.biases"].astype(mx.float32)]
        words, scales, *biases = parts
        bias = biases[0] if biases else None
        size, bits = form[1], form[0]
        return np.array(mx.dequantize(words, scales, bias, size, bits, mode, dtype=mx.float32))


def check_drafts(case: KindCase, config) -> None:
    expected = reference(case.source, case.taps, ANCHOR, case.embed, case.head)
    draft = case.draft(config)
    assert draft.tokens.tolist() == expected.tokens
    assert close(draft.logits, expected.logits)
    assert close(draft.hidden, expected.hidden)
    assert close(draft.confidence_logits, expected.confidence_logits)


@pytest.mark.parametrize("kind", SIZES)
def test_a_drafter_is_the_formulas(tmp_path, kind):
    """A type decoded where it could stay packed, packed where it could not, rounded on the way."""
    case = KindCase(tmp_path, kind)
    config = case.convert(keep_embeddings=True)
    for name, values in case.values.items():
        base = name.removesuffix(".weight")
        if values.ndim == 2 and values.shape[1] % 32 == 0:
            form = config.quantization and config.quantization.of(base)
            assert form == (FORMS[kind] and FORMS[kind][:2])
            assert np.array_equal(case.stored(config, base), values), name
    assert (config.quantization.mode if config.quantization else None) == (
        FORMS[kind] and FORMS[kind][2]
    )
    check_drafts(case, config)


def test_a_mixture_of_types(tmp_path):
    """One type taken for all matrices; fused rows of unlike types joined as if they were alike."""
    case = KindCase(tmp_path, "Q4_K", MIXED)
    config = case.convert(keep_embeddings=True)
    assert config.quantization.of("layers.0.self_attn.q_proj") == (4, 32)
    assert config.quantization.of("layers.1.mlp.down_proj") == (5, 32)
    assert config.quantization.of("layers.1.self_attn.v_proj") is None
    for name in ("layers.0.self_attn.v_proj", "lm_head", "layers.1.mlp.down_proj"):
        assert np.array_equal(case.stored(config, name), case.values[f"{name}.weight"])
    check_drafts(case, config)


def test_a_drafter_is_quantized_anew_only_where_asked(tmp_path):
    """Scales of one drafter in two types; a decoded type left plain."""
    case = KindCase(tmp_path, "Q4_K", MIXED)
    config = case.convert(quantize=True, q_bits=8, q_group_size=32)
    stored = read_tensors(case.out)
    for base in ("layers.0.self_attn.q_proj", "layers.0.self_attn.v_proj"):
        assert config.quantization.of(base) == (8, 32)
        assert stored[f"{base}.scales"].dtype == mx.float16
        source = mx.array(case.values[f"{base}.weight"])
        assert mx.array_equal(stored[f"{base}.weight"], mx.quantize(source, 32, 8)[0])


TARGETS = [(family, kind) for family in ("llama", "qwen3") for kind in SIZES]


@pytest.mark.parametrize("case", some_slow(TARGETS, TARGETS[: len(SIZES) + 1]), ids=str)
def test_a_target_is_the_formulas(tmp_path, case):
    """Rows of q and k in a llama's order, with the scales of others; a mode that is not said."""
    family, kind = case
    file = gguf_kinds.target(tmp_path / "hf", tmp_path / "m.gguf", family, kind)
    folder = convert_target(file, tmp_path / "out", dtype="float32")
    expected = logits(load_model(tmp_path / "hf")[0])
    assert np.abs(expected).max() > 0.5
    # float32 holds every value, so that only the order of sums differs.
    np.testing.assert_allclose(float_logits(folder), expected, rtol=2e-4, atol=2e-4)
    form = FORMS[kind]
    said = json.loads((folder / "config.json").read_text()).get("quantization")
    assert said == (form and {"bits": form[0], "group_size": form[1], "mode": form[2]})
    # The packed model runs too, and gives the same.
    packed = load_model(folder)[0]
    np.testing.assert_allclose(logits(packed), expected, rtol=2e-3, atol=2e-3)


def test_a_target_of_a_mixture(tmp_path):
    """Matrices that are packed in other modes than most, and some that are not."""
    kinds = MIXED | {"embed": "Q2_K", "gate_proj": "MXFP4", "up_proj": "Q3_K"}
    file = gguf_kinds.target(tmp_path / "hf", tmp_path / "m.gguf", "llama", "Q4_K", kinds)
    folder = convert_target(file, tmp_path / "out", dtype="float32")
    expected = logits(load_model(tmp_path / "hf")[0])
    np.testing.assert_allclose(float_logits(folder), expected, rtol=2e-4, atol=2e-4)
    layer = load_model(folder)[0].model.layers[1]
    assert (layer.mlp.gate_proj.mode, layer.mlp.up_proj.bits) == ("mxfp4", 8)
    assert layer.self_attn.v_proj.weight.dtype == mx.float32


def test_types_of_a_targets_numbers(tmp_path):
    """float16 by default for what is decoded, float32 for products of scales, or what is asked."""
    kinds = {"v_proj": "Q6_K"}
    file = gguf_kinds.target(tmp_path / "hf", tmp_path / "m.gguf", "qwen3", "Q4_K", kinds)
    layer = load_model(convert_target(file, tmp_path / "out"))[0].model.layers[0].self_attn
    assert layer.v_proj.weight.dtype == mx.float16
    assert layer.q_proj.scales.dtype == layer.q_proj.biases.dtype == mx.float32
    half = load_model(convert_target(file, tmp_path / "half", dtype="bfloat16"))[0]
    kinds = {array.dtype for _, array in tree_flatten(half.parameters())}
    assert kinds == {mx.uint32, mx.bfloat16}


def scaled(file: Path, factor: float, shape: tuple[int, ...] = (1,)) -> None:
    """Give every NVFP4 matrix of a file a factor."""
    header, raw = read_header(file), file.read_bytes()
    tensors: dict[str, Any] = {}
    for name, row in header.tensors.items():
        number = SIZES[row.type][0] if row.type in SIZES else 0
        tensors[name] = Raw(number, raw[row.start : row.start + row.size], row.shape)
        if row.type == "NVFP4":
            stem = name.removesuffix(".weight")
            tensors[f"{stem}.scale"] = (np.full(shape, factor, np.float32), "F32")
    write_gguf(file, header.metadata, tensors)


@pytest.mark.parametrize("factor", [1.0, 0.7])
def test_a_factor_of_nvfp4(tmp_path, factor):
    """A factor dropped, or a matrix kept packed that MLX cannot give its factor."""
    case = KindCase(tmp_path, "NVFP4")
    scaled(case.file, factor)
    config = case.convert(keep_embeddings=True)
    assert (config.quantization is None) == (factor != 1)
    for name in ("fc", "layers.1.mlp.down_proj", "lm_head"):
        expected = case.values[f"{name}.weight"] * np.float32(factor)
        assert np.array_equal(case.stored(config, name), expected)

    file = gguf_kinds.target(tmp_path / "hf", tmp_path / "m.gguf", "llama", "NVFP4")
    scaled(file, factor)
    folder = convert_target(file, tmp_path / "target", dtype="float32")
    weight = load_model(folder)[0].model.layers[0].mlp.up_proj
    values = load_file(tmp_path / "hf" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    if factor == 1:
        assert weight.mode == "nvfp4"
    else:
        assert np.array_equal(np.array(weight.weight), values * np.float32(factor))


BROKEN = {
    "a factor of many numbers": ("NVFP4", lambda f: scaled(f, 2.0, (2,)), "unknown tensors"),
    "a factor that is none": ("NVFP4", lambda f: scaled(f, np.nan), "NaN or infin"),
    "an exponent": ("MXFP4", lambda f: spoil(f, 0, 255), "NaN or infin"),
    "a scale": ("NVFP4", lambda f: spoil(f, 0, 127), "NaN or infin"),
    "a half": ("Q4_K", lambda f: spoil(f, 1, 0x7C), "NaN or infin"),
    "a half of Q3_K": ("Q3_K", lambda f: spoil(f, 109, 0x7E), "NaN or infin"),
    "a half of Q6_K": ("Q6_K", lambda f: spoil(f, 209, 0x7E), "NaN or infin"),
}


def spoil(file: Path, at: int, byte: int) -> None:
    """Change a byte of the first block of the second layer's mlp.up_proj."""
    raw = bytearray(file.read_bytes())
    raw[read_header(file).tensors["blk.1.ffn_up.weight"].start + at] = byte
    file.write_bytes(raw)


@pytest.mark.parametrize("what", BROKEN)
def test_broken_blocks_are_refused(tmp_path, what):
    """A damaged scale that is a number to NumPy, or that its rows only meet when they are run."""
    kind, edit, pattern = BROKEN[what]
    case = KindCase(tmp_path, kind)
    file = gguf_kinds.target(tmp_path / "hf", tmp_path / "m.gguf", "llama", kind)
    for source, convert in ((case.file, case.convert), (file, None)):
        edit(source)
        with pytest.raises(InputError, match=pattern) as error:
            convert() if convert else convert_target(source, tmp_path / "out")
        assert str(source) in str(error.value) and "\n" not in str(error.value.found)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["Q3_K", "IQ4_XS", "MXFP4", "NVFP4"])
def test_cut_files_and_wrong_counts(tmp_path, kind):
    """A block read past the file's end; rows that are no whole number of blocks."""
    case = KindCase(tmp_path, kind)
    whole = case.file.read_bytes()
    case.file.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="cut off or damaged"):
        case.convert()
    weights = SIZES[kind][1]
    odd = {"x": Raw(SIZES[kind][0], b"\0" * SIZES[kind][2] * 2, (1, weights * 3 // 2))}
    write_gguf(case.file, {"general.architecture": "dflash"}, odd)
    with pytest.raises(InputError, match=f"non-empty rows of a multiple of {weights}"):
        case.convert()
    assert not case.out.exists()


@pytest.mark.parametrize("number, name", [(16, "IQ2_XXS"), (41, "Q1_0"), (29, "IQ1_M")])
def test_types_that_are_not_read_are_named(tmp_path, number, name):
    case = KindCase(tmp_path, "Q4_K")
    write_gguf(
        case.file, {"general.architecture": "dflash"}, {"x": Raw(number, b"\0" * 999, (1, 256))}
    )
    with pytest.raises(InputError, match=rf"ggml type {number} \({name}\) for x"):
        case.convert()
