"""Eagle3 checkpoints that cannot be used: one clear error, and nothing left on disk."""

from __future__ import annotations

import mlx.core as mx
import pytest
from helpers.edits import CONFIG, WEIGHTS, config, cut, nan, tensors
from helpers.packaged_eagle3 import EAGLE3
from helpers.packaged_parts import HIDDEN

from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.errors import InputError

BROKEN = {
    "two layers": (
        "qwen3",
        config(num_hidden_layers=2, layer_types=["full_attention"] * 2),
        ("num_hidden_layers 2", "1"),
    ),
    "no steps": ("qwen3", config(ttt_length=None), (CONFIG, "no ttt_length")),
    "steps no number": ("qwen3", config(ttt_length="7"), ("steps '7'", "int")),
    "four taps": ("qwen3", config(target_layer_ids=[0, 1, 2, 3]), ("[0, 1, 2, 3]", "5")),
    "embedding tap": (
        "qwen3",
        config(target_layer_ids=[-1, 0, 1, 2, 3]),
        ("[-1, 0, 1, 2, 3]", "5 layers"),
    ),
    "taps past the target": (
        "gemma4",
        config(target_layer_ids=[0, 1, 2, 3, 6]),
        ("taps [0, 1, 2, 3, 6]", "-1..5"),
    ),
    "no depth": ("gemma4", config(num_target_layers=None), ("no num_target_layers",)),
    "sliding": (
        "qwen3",
        config(layer_types=["sliding_attention"], sliding_window=8),
        ("sliding_attention", "each full_attention"),
    ),
    "attention bias": ("qwen3", config(attention_bias=True), ("attention_bias", "True")),
    "experts": ("gemma4", config(enable_moe_block=True), ("enable_moe_block True", "none")),
    "layer scalar missing": (
        "gemma4",
        tensors(layers__0__layer_scalar=None),
        ("no tensor layers.0.layer_scalar",),
    ),
    "norm missing": (
        "qwen3",
        tensors(layers__0__hidden_norm__weight=None),
        ("no tensor layers.0.hidden_norm.weight",),
    ),
    "a DSpark norm": (
        "qwen3",
        tensors(hidden_norm__weight=lambda t: mx.ones((HIDDEN,))),
        ("unknown tensors hidden_norm.weight",),
    ),
    "a reduced vocabulary": (
        "qwen3",
        tensors(d2t=lambda t: mx.arange(40)),
        ("unknown tensors d2t",),
    ),
    "queries of another width": (
        "qwen3",
        tensors(layers__0__self_attn__q_proj__weight=lambda t: t[:, :HIDDEN]),
        ("q_proj.weight", "[32, 32]", "[32, 64]"),
    ),
    "NaN": ("qwen3", tensors(norm__weight=nan), ("norm.weight", "NaN", "finite")),
    "wrong type": (
        "qwen3",
        tensors(norm__weight=lambda t: t.astype(mx.int32)),
        ("norm.weight", "int32", "floating"),
    ),
    "cut off": ("gemma4", cut(WEIGHTS, 0.7), (WEIGHTS, "bytes", "a whole safetensors file")),
    "a DSpark name": (
        "qwen3",
        config(architectures=["Qwen3DSparkModel"]),
        ("no block_size",),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_used_is_refused(tmp_path, name):
    """A damaged file that converts, or an error that names nothing."""
    family, edit, parts = BROKEN[name]
    source, out = tmp_path / "source", tmp_path / "out"
    EAGLE3[family](source)
    edit(source)
    with pytest.raises(InputError) as error:
        convert_drafter(source, out, progress=False)
    assert [part for part in parts if part not in str(error.value)] == []
    assert not out.exists()
