"""Whether a target's requests may share forwards, found out before they do."""

from __future__ import annotations

import mlx.core as mx
import pytest
from helpers.families import family
from helpers.tiny_models import tiny
from mlx_lm.models.cache import make_prompt_cache

from dspark_mlx.targets.batch_check import runs_in_batches
from dspark_mlx.targets.tap import Target

PROMPT = mx.array([5, 3, 8])


def mixing():
    """A llama whose rows see the batch's other requests, as with a mask that all share."""
    model = tiny("llama")
    original = type(model)

    def call(self, *args, **kwargs):
        logits = original.__call__(self, *args, **kwargs)
        return logits + 0.5 * logits[::-1]

    model.__class__ = type("Mixing", (original,), {"__call__": call})
    return model


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "gemma3_text"])
def test_families_that_run_in_batches(name):
    model = tiny(name)
    target = Target(model, (1,), name)
    before, _ = target(PROMPT, make_prompt_cache(model))
    assert target.batches is None
    assert runs_in_batches(target) and target.batches
    after, taps = target(PROMPT, make_prompt_cache(model))
    assert mx.array_equal(before, after).item() and len(taps) == 1
    target.close()


@pytest.mark.parametrize("make", [mixing, lambda: family("llama4")], ids=["mixed", "no batch"])
def test_families_that_do_not(make):
    """Texts that depend on what else is decoded."""
    target = Target(make(), (), "toy")
    assert not runs_in_batches(target)
    target.close()


@pytest.mark.parametrize("name, together", [("glm_moe_dsa", True), ("minimax_m3_vl", False)])
def test_indexers_are_looked_at_behind_long_texts(name, together):
    """MiniMax M3, which counts blocks from the batch's last slot, and chooses none in short
    texts."""
    target = Target(family(name), (), "toy")
    assert runs_in_batches(target) is together
    target.close()
