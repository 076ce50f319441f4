"""Checks of numbers: the quick way for Python's own integers refuses what the slow one does."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from dspark_mlx import InputError
from dspark_mlx.numbers import token_ids


def numpys(ids):
    return [np.int64(each) for each in ids]


@pytest.mark.parametrize("kind", [list, tuple, np.array, mx.array, numpys])
def test_token_ids_of_any_kind_are_plain_integers(kind):
    """Ids that stay NumPy's, and are no keys of a dictionary of ids later."""
    found = token_ids("prompt", kind([0, 3, 9]), 10)
    assert found == [0, 3, 9]
    assert {*map(type, found)} == {int}


@pytest.mark.parametrize("wrong", [-1, 10, True, 1.0, None, "1", [1], 1 << 70, np.int32(10)])
def test_one_wrong_id_among_right_ones_is_named(wrong):
    """A bool or an id beyond the vocabulary that passes because its neighbours are right."""
    with pytest.raises(InputError, match=r"at position 2.*from 0 to 9"):
        token_ids("prompt", [1, 2, wrong, 3], 10)


def test_no_ids_are_a_list():
    assert token_ids("stop_tokens", ()) == []
