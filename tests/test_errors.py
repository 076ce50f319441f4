"""The message of an unusable input: one printable line, never pages."""

from __future__ import annotations

import math

import pytest
from helpers.pairs import golden

from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.drafters.methods import read_config
from dspark_mlx.errors import InputError
from dspark_mlx.schedulers.make import check_scheduler
from dspark_mlx.system.files import read_json


def test_a_message_is_one_printable_line_and_not_long():
    """Another library's message of many lines, control characters, or a list of every tensor."""
    error = InputError("a\nb", "x" * 10_000 + "end", "\x1b[2J\u2028\ud800c", "Do\r\nthis.")
    message = str(error)
    assert len(message.splitlines()) == 1 and len(message) < 600
    assert message.startswith("a b: found xxx") and message.endswith("Do this.")
    assert "x ... x" in error.found and error.found.endswith("end")
    assert error.expected == r"\x1b[2J \ud800c"


def test_a_word_that_is_nearly_known_is_told():
    """A list of six schedulers in which the reader looks for the slip."""
    for wrong, meant in (("ful", "full"), ("fixd:3", "fixed"), ("xyzzy", None)):
        with pytest.raises(InputError, match="one of auto, ") as refused:
            check_scheduler(wrong)
        assert refused.value.hint == (f"Did you mean {meant}?" if meant else "")


NUMBERS = {
    "embedding_scale": (1e300, 0.0, math.nan, True),
    "softcap": (-1.0, 1e300, 1e-300),
    "attention_scale": (math.inf, -1.0),
    "rms_norm_eps": (0.0, -1e-6, 2.0, math.nan),
    "rope_theta": (0.0, -1.0, 1.0, math.inf, 10**400),
    "block_size": (0, 10**9),
    "num_layers": (0, -1),
    "rope_scaling": (
        {"rope_type": "yarn", "factor": math.nan, "original_max_position_embeddings": 16},
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0},
        {"rope_type": ["yarn"]},
    ),
}


@pytest.fixture(scope="module")
def canonical(tmp_path_factory):
    folder = tmp_path_factory.mktemp("canonical") / "drafter"
    convert_drafter(golden("vanilla"), folder, progress=False)
    return read_json(folder / "config.json")


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in NUMBERS.items() for v in vs])
def test_numbers_that_nothing_computes_with_are_refused(canonical, name, value):
    """A drafter whose every draft is NaN, from one number in its config."""
    with pytest.raises(InputError, match=name):
        read_config(canonical | {name: value}, "config.json")
