"""DeepSeek V4 as others repacked it for MLX: the same numbers under other names."""

from __future__ import annotations

import mlx.core as mx
import pytest
from helpers.deepseek_v4 import FOLDER
from helpers.repacked import repack

import dspark_mlx
from dspark_mlx.errors import InputError
from dspark_mlx.pairs.stored import read_drafter
from dspark_mlx.targets.network import open_network

TOKENS = mx.array([[3, 5, 7, 9, 11, 400, 33, 21, 3, 4, 5, 6, 7, 8, 9, 10, 44]])


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("prefix", ["", "language_model."])
def test_a_repack_is_read_as_it_is(tmp_path, prefix, affine):
    """A repack that is refused, or whose FP8 is read with the bits of its default form."""
    expected = repack(tmp_path / "repack", prefix, affine)
    found, _ = open_network(tmp_path / "repack")
    assert mx.array_equal(found(TOKENS), expected(TOKENS))


def test_a_repack_without_a_head_is_said_to_have_none(tmp_path):
    """A list of packagings for a config that names a head which the repack left out."""
    repack(tmp_path / "repack", "", affine=False)
    with pytest.raises(InputError, match="a target without a head") as error:
        read_drafter(tmp_path / "repack")
    assert "--head-only" in str(error.value)
    decoder = dspark_mlx.load(tmp_path / "repack", FOLDER, "full")
    rounds = list(decoder.rounds([440, 464, 322], 6))
    assert rounds[0].tokens == (193,)
