"""Safetensors files that are written in pieces are those that other software reads."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from safetensors import safe_open

from dspark_mlx.checkpoint.tensor_writer import Planned, TensorFile


def test_pieces_are_joined_in_their_tensor(tmp_path):
    """Pieces of several tensors in turn; numbers that are not where their type wants them."""
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 255, (3, 5)).astype(np.uint8), rng.random((3, 4), np.float32)
    path = tmp_path / "model.safetensors"
    planned = {"a": Planned("U8", (3, 5)), "b": Planned("F32", (3, 4)), "c": Planned("BF16", (1,))}
    with TensorFile(path, planned) as file:
        for row in range(3):
            file.write("a", mx.array(first[row]))
            file.write("b", mx.array(second)[row])
        file.write("c", mx.array([1.5], mx.bfloat16))
    with safe_open(path, framework="numpy") as loaded:  # which has no BF16
        assert (loaded.get_tensor("a") == first).all()
        assert (loaded.get_tensor("b") == second).all()
    assert mx.load(str(path))["c"].tolist() == [1.5]


def test_a_view_is_written_in_its_order(tmp_path):
    """The memory behind a transposed or cut array written as it lies."""
    path, array = tmp_path / "model.safetensors", mx.arange(12).reshape(3, 4)
    with TensorFile(path, {"a": Planned("I32", (4, 2))}) as file:
        file.write("a", array.T[:, 1:])
    assert mx.array_equal(mx.load(str(path))["a"], array.T[:, 1:])


def test_a_tensor_with_numbers_missing_is_noticed(tmp_path):
    """A file with a hole, which reads as zeros."""
    with (
        pytest.raises(AssertionError),
        TensorFile(tmp_path / "f", {"a": Planned("U8", (3,))}) as file,
    ):
        file.write("a", mx.array([1, 2], mx.uint8))
