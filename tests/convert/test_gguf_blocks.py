"""Every type of tensor that GGUF files hold is read exactly."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.gguf_writer import Raw, dequantize, quantize, write_gguf

from dspark_mlx.convert.gguf.blocks import (
    AFFINE_BITS,
    GROUP_SIZE,
    read_affine,
    read_values,
)
from dspark_mlx.convert.gguf.header import TENSOR_TYPES, read_header

BY_NAME = {name: (number, *sizes) for number, (name, *sizes) in TENSOR_TYPES.items()}


def written(path: Path, kind: str, data: bytes, shape: tuple[int, ...]):
    """A file with one tensor `x`, and what the header says of it."""
    write_gguf(path, {"general.architecture": "none"}, {"x": Raw(BY_NAME[kind][0], data, shape)})
    return read_header(path).tensors["x"]


def random_blocks(kind: str, rows: int, columns: int) -> bytes:
    """Any bytes are levels; the scales among them are made numbers."""
    _, weights, size = BY_NAME[kind]
    rng = np.random.default_rng(4)
    blocks = rng.integers(0, 256, (rows * columns // weights, size), dtype=np.uint8)
    places = {"Q2_K": (80, 82), "Q4_K": (0, 2), "Q6_K": (208,), "Q4_1": (0, 2)}.get(kind, (0,))
    for at in places:
        scales = rng.normal(0, 0.01, len(blocks)).astype("<f2")
        blocks[:, at : at + 2] = scales[:, None].view("u1")
    return blocks.tobytes()


@pytest.mark.parametrize("kind", AFFINE_BITS)
def test_affine_types_are_held_bit_for_bit(tmp_path, kind):
    """A level in another's place, a rounded scale, -128 taken for 128."""
    shape = (6, 96)
    data = random_blocks(kind, *shape)
    row = written(tmp_path / "x.gguf", kind, data, shape)
    expected = dequantize(data, kind, shape)
    words, scales, biases = read_affine(tmp_path / "x.gguf", row)
    assert scales.dtype == biases.dtype == mx.float16
    scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    form = {"group_size": GROUP_SIZE, "bits": AFFINE_BITS[kind]}
    assert np.array_equal(np.array(mx.dequantize(words, scales, biases, **form)), expected)
    values = read_values(tmp_path / "x.gguf", row)
    assert values.dtype == mx.float32 and np.array_equal(np.array(values), expected)


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


def half(block: bytes, at: int) -> np.float32:
    return np.float32(np.frombuffer(block, "<f2", 1, at)[0])


def q2_k(block: bytes) -> list[np.float32]:
    """Weight by weight, as ggml's formulas have it."""
    out = []
    for i in range(256):
        shift, byte = i % 128 // 32 * 2, i // 128 * 32 + i % 32
        level = block[16 + byte] >> shift & 3
        scale, minimum = block[i // 16] & 15, block[i // 16] >> 4
        out.append(half(block, 80) * scale * level - half(block, 82) * minimum)
    return out


def q4_k(block: bytes) -> list[np.float32]:
    out, q = [], block[4:16]
    for i in range(256):
        j, byte = i // 32, i // 64 * 32 + i % 32
        level = block[16 + byte] >> 4 if j % 2 else block[16 + byte] & 15
        if j < 4:
            scale, minimum = q[j] & 63, q[j + 4] & 63
        else:
            scale = q[j + 4] & 15 | (q[j - 4] >> 6) << 4
            minimum = q[j + 4] >> 4 | (q[j] >> 6) << 4
        out.append(half(block, 0) * scale * level - half(block, 2) * minimum)
    return out


def q6_k(block: bytes) -> list[np.float32]:
    out, scales = [], np.frombuffer(block, "i1", 16, 192)
    for i in range(256):
        part, quarter, place = i // 128, i % 128 // 32, i % 32
        low = block[64 * part + 32 * (quarter % 2) + place] >> 4 * (quarter // 2) & 15
        high = block[128 + 32 * part + place] >> 2 * quarter & 3
        out.append(half(block, 208) * int(scales[i // 16]) * ((low | high << 4) - 32))
    return out


@pytest.mark.parametrize("kind, decode", [("Q2_K", q2_k), ("Q4_K", q4_k), ("Q6_K", q6_k)])
def test_k_quants_are_read_exactly(tmp_path, kind, decode):
    """Every other group with its neighbour's scale, as MLX's reader takes Q4_K."""
    shape = (2, 512)
    data = random_blocks(kind, *shape)
    row = written(tmp_path / "x.gguf", kind, data, shape)
    size = BY_NAME[kind][2]
    expected = [decode(data[at : at + size]) for at in range(0, len(data), size)]
    found = np.array(read_values(tmp_path / "x.gguf", row))
    assert np.abs(found).max() > 0.1
    assert np.array_equal(found, np.array(expected, np.float32).reshape(shape))


def test_data_of_another_tensor_is_not_read(tmp_path):
    """An offset that forgets the alignment, or the header's length."""
    arrays = {f"t{i}": np.full((i + 1,), i + 0.5, np.float32) for i in range(4)}
    path = write_gguf(tmp_path / "x.gguf", {}, {name: (a, "F32") for name, a in arrays.items()})
    tensors = read_header(path).tensors
    for name, array in arrays.items():
        assert np.array_equal(np.array(read_values(path, tensors[name])), array)
