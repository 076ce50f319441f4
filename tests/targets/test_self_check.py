"""The self-check at load refuses what does not roll back, and nothing that does."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest
from helpers.families import family
from helpers.tiny_models import tiny

from dspark_mlx.errors import InputError
from dspark_mlx.targets.self_check import check_rollback
from dspark_mlx.targets.tap import Target

# In 16 bits two of the last three differ by 5 and 13 % between one row and several.
RIGHT = ("qwen3_5", "mamba2", "gemma3", "lfm2", "falcon_h1", "qwen3_moe", "longcat_flash",
    "glm4_moe_lite")  # fmt: skip


def in_type(model: nn.Module, kind: str) -> nn.Module:
    if kind == "4-bit":
        model.set_dtype(mx.bfloat16)
        nn.quantize(
            model,
            group_size=32,
            bits=4,
            class_predicate=lambda _, m: (
                hasattr(m, "to_quantized") and m.weight.shape[-1] % 32 == 0
            ),
        )
    else:
        model.set_dtype(getattr(mx, kind))
    mx.eval(model.parameters())
    return model


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16", "4-bit"])
@pytest.mark.parametrize("name", RIGHT)
def test_right_families_pass_in_every_type(name, kind):
    """A tolerance that takes rounding, or one row that a router sends elsewhere, for an error."""
    target = Target(in_type(family(name), kind), (), name)
    check_rollback(target, name)
    target.close()


@pytest.mark.parametrize("window", [8, 2048])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_a_window_that_is_one_too_long_is_refused(window, kind):
    """plamo3 in mlx-lm 0.32.2: several rows see one position more than single ones; among 2048,
    which is its own window, one more hardly counts by itself."""
    target = Target(in_type(family("plamo3", window_size=window), kind), (), "plamo3")
    with pytest.raises(InputError, match=r"plamo3: found \d+ % other states"):
        check_rollback(target, "plamo3")


@pytest.mark.parametrize("name, window", [("gemma3", 1024), ("gpt_oss", 128), ("cohere2", 4096)])
def test_a_right_window_of_its_own_length_passes(name, window):
    """Larger values at a window's beginning taken for a fault."""
    target = Target(family(name, sliding_window=window), (), name)
    check_rollback(target, name)
    target.close()


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "4-bit"])
def test_a_mask_that_does_not_mask_is_refused(kind):
    """phi3small in mlx-lm 0.32.2: a boolean mask is added to the scores."""
    target = Target(in_type(family("phi3small"), kind), (), "phi3small")
    with pytest.raises(InputError, match=r"where rows run together|taken back"):
        check_rollback(target, "phi3small")


@pytest.mark.parametrize("name", ["qwen3_next", "falcon_h1", "deepseek_v41"])
def test_states_without_their_mixers_are_refused(name, monkeypatch):
    """A recurrent family whose writers the probe does not see."""
    monkeypatch.setattr("dspark_mlx.targets.mixers.find_mixers", lambda model: [])
    target = Target(family(name), (), name)
    with pytest.raises(InputError, match="behind rows that were taken back"):
        check_rollback(target, name)


def test_nan_is_refused():
    """A comparison that NaN passes."""
    model = tiny("llama")
    model.model.norm.weight = model.model.norm.weight * mx.nan
    target = Target(model, (), "tiny llama")
    with pytest.raises(InputError, match="tiny llama"):
        check_rollback(target, "tiny llama")


def test_the_model_is_whole_afterwards():
    """Layers left out for the check and not put back, or a tap lost."""
    model = in_type(tiny("llama"), "bfloat16")
    target = Target(model, (0, 2), "tiny llama")
    layers = list(model.layers)
    before, taps = target(mx.array([1, 2, 3]), None)
    check_rollback(target, "tiny llama")
    assert all(a is b for a, b in zip(model.layers, layers, strict=True))
    after, again = target(mx.array([1, 2, 3]), None)
    assert mx.array_equal(before, after).item()
    assert all(mx.array_equal(a, b).item() for a, b in zip(taps, again, strict=True))
    assert target.dtype == mx.bfloat16 and type(target._tables.embedding) is nn.Embedding


@pytest.mark.parametrize("name", ["exaone4", "olmo3", "qwen3_5", "lfm2", "gemma3"])
def test_right_families_are_not_looked_at_twice(name, monkeypatch):
    """A quick look that fails where layers are passed through, so that every load pays for all."""
    monkeypatch.setattr("dspark_mlx.targets.self_check.measure_gaps", None)
    target = Target(family(name), (), name)
    check_rollback(target, name)
    target.close()


def test_a_target_is_checked_once(monkeypatch):
    """The cost of a check for every further drafter of a target."""
    target = Target(tiny("llama"), (0,), "tiny llama")
    check_rollback(target, "tiny llama")
    monkeypatch.setattr("dspark_mlx.targets.self_check.measure_gaps", None)
    check_rollback(target.sharing((1,), "tiny llama"), "tiny llama")
    target.close()
