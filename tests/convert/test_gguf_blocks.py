"""Every type of tensor that GGUF files hold is read exactly."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.gguf_scalar import SIZES, decoded, random_blocks
from helpers.gguf_writer import Raw, dequantize, quantize, write_gguf

from dspark_mlx.convert.gguf import blocks as blocks_module
from dspark_mlx.convert.gguf.blocks import DECODED, PACKED, read_packed, read_values
from dspark_mlx.convert.gguf.header import TENSOR_TYPES, read_header

BY_NAME = {name: number for number, (name, *_) in TENSOR_TYPES.items()}
MODES = {"MXFP4": "mxfp4", "NVFP4": "nvfp4"}


def written(path: Path, kind: str, data: bytes, shape: tuple[int, ...]):
    """A file with one tensor `x`, and what the header says of it."""
    write_gguf(path, {"general.architecture": "none"}, {"x": Raw(BY_NAME[kind], data, shape)})
    return read_header(path).tensors["x"]


def test_every_type_is_tried():
    """A type that is read, and that no test below has."""
    quantized = set(PACKED) | set(DECODED)
    assert quantized == set(SIZES)
    assert not set(PACKED) & set(DECODED)
    for kind, (number, weights, size) in SIZES.items():
        assert TENSOR_TYPES[number] == (kind, weights, size)


@pytest.mark.parametrize("at_once", [1 << 20, 512], ids=["whole", "in parts"])
@pytest.mark.parametrize("kind", SIZES)
def test_values_are_the_formulas(tmp_path, monkeypatch, kind, at_once):
    """A level, a high bit or a scale in another's place; a sign; a part read twice."""
    monkeypatch.setattr(blocks_module, "_AT_ONCE", at_once)
    shape = (3, 512)
    blocks = random_blocks(kind, 3 * 512 // SIZES[kind][1])
    row = written(tmp_path / "x.gguf", kind, blocks.tobytes(), shape)
    values = read_values(tmp_path / "x.gguf", row)
    expected = decoded(kind, blocks).reshape(shape)
    assert values.dtype == mx.float32 and 0.01 < np.abs(expected).mean() < 0.2
    assert np.array_equal(np.array(values), expected)
    # A vector, which no quantiser makes but a damaged file may have.
    row = written(tmp_path / "x.gguf", kind, blocks.tobytes(), (3 * 512,))
    assert np.array_equal(np.array(read_values(tmp_path / "x.gguf", row)), expected.reshape(-1))


@pytest.mark.parametrize("at_once", [1 << 20, 512], ids=["whole", "in parts"])
@pytest.mark.parametrize("kind", PACKED)
def test_packed_types_are_held_bit_for_bit(tmp_path, monkeypatch, kind, at_once):
    """A product of scales rounded to float16; levels in another order than MLX's; -128 for 128."""
    monkeypatch.setattr(blocks_module, "_AT_ONCE", at_once)
    shape = (6, 512)
    blocks = random_blocks(kind, 6 * 512 // SIZES[kind][1])
    row = written(tmp_path / "x.gguf", kind, blocks.tobytes(), shape)
    words, scales, *biases = read_packed(tmp_path / "x.gguf", row)
    bits, group_size, mode = PACKED[kind]
    assert mode == MODES.get(kind, "affine")
    if mode == "affine":
        # Products of a float16 and a small whole number need float32; the others do not.
        products = kind.endswith("_K") or kind == "IQ4_XS"
        assert scales.dtype == biases[0].dtype == (mx.float32 if products else mx.float16)
        scales, biases = scales.astype(mx.float32), [biases[0].astype(mx.float32)]
    else:
        assert scales.dtype == mx.uint8 and not biases
    form = {"group_size": group_size, "bits": bits, "mode": mode, "dtype": mx.float32}
    found = np.array(mx.dequantize(words, scales, *biases, **form))
    assert np.array_equal(found, decoded(kind, blocks).reshape(shape))


@pytest.mark.parametrize("kind", ["Q3_K", "Q4_K", "Q5_K", "IQ4_XS"])
def test_scales_stay_float16_where_that_is_exact(tmp_path, kind):
    """float32 for a tensor whose products float16 holds."""
    blocks = random_blocks(kind, 4)
    at = {"Q3_K": (108,), "IQ4_XS": (0,)}.get(kind, (0, 2))
    for place in at:  # powers of two: products have the few bits of the whole numbers
        blocks[:, place : place + 2] = np.array([2.0**-8], "<f2").view("u1")
    row = written(tmp_path / "x.gguf", kind, blocks.tobytes(), (2, 512))
    words, scales, biases = read_packed(tmp_path / "x.gguf", row)
    assert scales.dtype == biases.dtype == mx.float16
    bits, group_size, _ = PACKED[kind]
    parts = words, scales.astype(mx.float32), biases.astype(mx.float32)
    found = np.array(mx.dequantize(*parts, group_size=group_size, bits=bits))
    assert np.array_equal(found, decoded(kind, blocks).reshape(2, 512))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "I32", "I64"])
def test_plain_types_are_read_as_stored(tmp_path, kind):
    shape = (3, 5)
    array = np.random.default_rng(1).normal(0, 100, shape).astype(np.float32)
    integers = {"I32": "<i4", "I64": "<i8"}.get(kind)
    data = array.astype(integers).tobytes() if integers else quantize(array, kind)
    values = read_values(tmp_path / "x.gguf", written(tmp_path / "x.gguf", kind, data, shape))
    types = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
    assert values.dtype == types.get(kind, mx.int32 if kind == "I32" else mx.int64)
    expected = array.astype(integers) if integers else dequantize(data, kind, shape)
    assert np.array_equal(np.array(values.astype(mx.float32)), expected)


def test_data_of_another_tensor_is_not_read(tmp_path):
    """An offset that forgets the alignment, or the header's length."""
    arrays = {f"t{i}": np.full((i + 1,), i + 0.5, np.float32) for i in range(4)}
    path = write_gguf(tmp_path / "x.gguf", {}, {name: (a, "F32") for name, a in arrays.items()})
    tensors = read_header(path).tensors
    for name, array in arrays.items():
        assert np.array_equal(np.array(read_values(path, tensors[name])), array)
