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

# Without experts, which MLX multiplies in float32 alone on the CPU.
RIGHT = ("qwen3_5", "mamba2", "gemma3", "lfm2", "falcon_h1")


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


def test_a_window_that_is_one_too_long_is_refused():
    """plamo3 in mlx-lm 0.32.2: several rows see one position more than single ones."""
    target = Target(in_type(family("plamo3"), "float32"), (), "plamo3")
    with pytest.raises(InputError, match=r"plamo3: found \d+ % other states"):
        check_rollback(target, "plamo3")


def test_a_mask_that_does_not_mask_is_refused():
    """phi3small in mlx-lm 0.32.2: a boolean mask is added to the scores."""
    target = Target(family("phi3small"), (), "phi3small")
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
    model = tiny("llama")
    target = Target(model, (0, 2), "tiny llama")
    layers = list(model.layers)
    before, taps = target(mx.array([1, 2, 3]), None)
    check_rollback(target, "tiny llama")
    assert all(a is b for a, b in zip(model.layers, layers, strict=True))
    after, again = target(mx.array([1, 2, 3]), None)
    assert mx.array_equal(before, after).item()
    assert all(mx.array_equal(a, b).item() for a, b in zip(taps, again, strict=True))
