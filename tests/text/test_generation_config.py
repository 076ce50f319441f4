"""Recommended settings of generation_config.json."""

from __future__ import annotations

import json

import pytest

from dspark_mlx import InputError
from dspark_mlx.text.generation_config import generation_defaults


@pytest.mark.parametrize(
    "content, expected",
    [
        ({}, {}),
        ({"eos_token_id": 3, "do_sample": True}, {"temperature": 1.0}),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": None},
            {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
        ),
        ({"temperature": 0.3, "repetition_penalty": 1.05}, None),
        ({"do_sample": False, "temperature": 0.3, "repetition_penalty": 1.1}, 1.1),
    ],
)
def test_settings_of_the_file(tmp_path, content, expected):
    """A name of the file that the package spells otherwise; sampling that the file switches off."""
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    if isinstance(expected, float):
        expected = {"repetition_penalty": expected}
    assert generation_defaults(tmp_path) == (content if expected is None else expected)


def test_a_file_that_is_none_names_itself(tmp_path):
    """A setting that is no number, refused by the sampler without the file's name."""
    assert generation_defaults(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text('{"top_p": "0.9"}')
    with pytest.raises(InputError, match=r"generation_config\.json.*top_p"):
        generation_defaults(tmp_path)
