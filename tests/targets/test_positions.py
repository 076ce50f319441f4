"""The number of positions, under the names that mlx-lm's families and their checkpoints have."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from helpers.families import CONFIGS, module_of

from dspark_mlx.errors import InputError
from dspark_mlx.targets import positions
from dspark_mlx.targets.positions import max_length

YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192}
FAMILIES = {
    "gpt2": ({"n_ctx": 1024, "n_positions": 512}, 512),
    "gpt_bigcode": ({"n_positions": 8192}, 8192),
    "gptj": ({"n_positions": 2048}, 2048),
    "an old gpt2": ({"n_ctx": 1024}, 1024),
    "kimi_linear": ({"model_max_length": 1048576}, 1048576),
    "cohere": ({"max_position_embeddings": 8192, "model_max_length": 131072}, 131072),
    "lille-130m": ({"block_size": 512}, 512),
    "dbrx": ({"max_seq_len": 32768}, 32768),
    "olmo": ({"max_sequence_length": 2048}, 2048),
    "openelm": ({"max_context_length": 2048}, 2048),
    "qwen": ({"max_position_embeddings": 32768, "seq_length": 8192}, 32768),
    "glm": ({"seq_length": 8192}, 8192),
    "kimi_vl": ({"text_config": {"max_position_embeddings": 131072}}, 131072),
    "hunyuan": (
        {
            "max_position_embeddings": 32768,
            "rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"},
        },
        32768,
    ),
    "olmo3": (
        {"max_position_embeddings": 65536, "rope_parameters": {"full_attention": YARN}},
        65536,
    ),
    "olmo3 without its scaling": (
        {"max_position_embeddings": 8192, "rope_parameters": {"full_attention": YARN}},
        65536,
    ),
    "gemma4": (
        {
            "max_position_embeddings": 131072,
            "rope_parameters": {
                "full_attention": {"rope_type": "proportional", "factor": 8.0},
                "sliding_attention": {"rope_type": "default"},
            },
        },
        131072,
    ),
    "telechat3": (
        {
            "max_position_embeddings": 2048,
            "rope_scaling": {"rope_type": "telechat3-yarn", "factor": 4.0},
        },
        8192,
    ),
    "mamba": ({"state_size": 16}, None),
}


@pytest.mark.parametrize("config, expected", FAMILIES.values(), ids=FAMILIES)
def test_every_name_is_read(config, expected):
    """A prompt taken that is longer than a family's positions, whose name was not known."""
    assert max_length(Path("m"), config) == expected


def test_no_family_of_mlx_lm_has_another_name():
    """A field of a newer family that says its positions and that nothing reads."""
    known = {*positions._KEYS, positions._LONGEST, "original_max_position_embeddings"}
    # Not a number of positions, but of a block of attention or experts, or a switch.
    other = {"attn_res_block_size", "blocksparse_block_size", "candidate_block_size",
        "index_block_size", "norm_after_position"}  # fmt: skip
    marks = ("position_embeddings", "n_positions", "n_ctx", "max_seq", "seq_len", "max_len",
        "max_length", "context_length", "block_size", "max_context")  # fmt: skip
    found = set()
    for name in CONFIGS:
        for part in vars(module_of(name)).values():
            if dataclasses.is_dataclass(part):
                names = {field.name for field in dataclasses.fields(part)}
                found |= {n for n in names if any(mark in n for mark in marks)}
    assert {"max_position_embeddings", "n_ctx", "model_max_length", "block_size"} <= found
    assert found - known - other == set()


@pytest.mark.parametrize("key", ["n_ctx", "model_max_length", "block_size"])
def test_a_length_that_is_none_is_refused_by_its_name(key):
    with pytest.raises(InputError, match=key):
        max_length(Path("m"), {key: "many"})
