"""Quantisation-aware training: what is judged and learnt from is what the converter will store."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from helpers.training_toys import SMALL, one_text_twice, same

from dspark_mlx.checkpoint.quantization import choose_quantization
from dspark_mlx.checkpoint.safetensors import read_tensors
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.pairs.stored import read_drafter
from dspark_mlx.train.publish import write_drafter
from dspark_mlx.train.run import TrainingRun
from dspark_mlx.train.step.learner import Recipe
from dspark_mlx.train.step.qat import fake_quantized

BITS, GROUP = 2, 32
AWARE = dataclasses.replace(
    SMALL, recipe=Recipe(6, 2e-3), save_every=6, qat_bits=BITS, qat_group_size=GROUP
)


def stored(config, tensors, folder):
    """What a trained drafter's matrices are once the converter has quantised them."""
    write_drafter(folder / "plain", config, tensors, mx.float32)
    made = folder / "quantised"
    convert_drafter(
        folder / "plain", made, quantize=True, q_bits=BITS, q_group_size=GROUP, progress=False
    )
    values = read_drafter(made).tensors
    found = {}
    for name in tensors:
        base = name.removesuffix(".weight")
        scales = values.get(f"{base}.scales")
        value = values[name]
        if scales is not None:
            value = mx.dequantize(value, scales, values[f"{base}.biases"], GROUP, BITS)
        found[name] = value
    return found


def test_weights_are_rounded_as_the_converter_stores_them(start, tmp_path):
    """Other groups or tensors than the converter's: a drafter trained for what it never becomes."""
    quantization = choose_quantization(start.config.matrix_shapes(), BITS, GROUP)
    weights = {name: value.astype(mx.float32) for name, value in start.tensors.items()}
    expected = stored(start.config, weights, tmp_path)
    found = fake_quantized(weights, quantization)
    changed = 0
    for name, value in weights.items():
        # Added to the weights and taken away again: equal up to one rounding of float32.
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-7, err_msg=name)
        changed += not mx.array_equal(found[name], value).item()
    assert changed > 5
    assert mx.array_equal(
        found["confidence_head.proj.weight"], weights["confidence_head.proj.weight"]
    )


def test_gradients_pass_through_the_rounding(start):
    """Gradients of zero, as rounding has: nothing would be learnt."""
    quantization = choose_quantization(start.config.matrix_shapes(), BITS, GROUP)
    slopes = {name: mx.random.normal(value.shape) for name, value in start.tensors.items()}

    def loss(weights):
        near = fake_quantized(weights, quantization)
        return sum((near[name] * slope).sum() for name, slope in slopes.items())

    same(mx.grad(loss)(dict(start.tensors)), slopes)


def test_a_run_is_judged_as_its_drafter_will_be_stored(target, corpus, start, tmp_path):
    """Held-out numbers of weights that nobody will use, or weights left rounded for good."""
    result = TrainingRun(target, corpus, start, AWARE, tmp_path / "aware").go()
    again = dataclasses.replace(start, tensors=stored(start.config, result.tensors, tmp_path))
    # No step moves them: a rate that float32 weights do not notice.
    still = dataclasses.replace(SMALL, recipe=Recipe(1, learning_rate=1e-30), evaluate_every=1)
    judged = TrainingRun(target, corpus, again, still, tmp_path / "still").go().judged
    assert judged.mean_loss == pytest.approx(result.judged.mean_loss, rel=1e-5)
    kept = dataclasses.replace(start, tensors=result.tensors)
    plain = TrainingRun(target, corpus, kept, still, tmp_path / "plain").go().judged
    assert plain.mean_loss != pytest.approx(result.judged.mean_loss, rel=1e-4)


@pytest.mark.slow
def test_it_learns_what_rounding_would_lose(target, corpus, start, tmp_path):
    """A rounding that is not part of what is learnt: as bad as rounding afterwards."""
    both = one_text_twice(corpus)
    short = dataclasses.replace(SMALL, held_out=1, evaluate_every=200)
    first = dataclasses.replace(short, recipe=Recipe(100, learning_rate=1e-2))
    learnt = TrainingRun(target, both, start, first, tmp_path / "first").go().tensors
    further = dataclasses.replace(short, recipe=Recipe(20, learning_rate=1e-3))
    kept = dataclasses.replace(start, tensors=learnt)
    plain = TrainingRun(target, both, kept, further, tmp_path / "plain").go()
    rounded_late = stored(start.config, plain.tensors, tmp_path)
    late = dataclasses.replace(start, tensors=rounded_late)
    still = dataclasses.replace(short, recipe=Recipe(1, learning_rate=1e-30))
    afterwards = TrainingRun(target, both, late, still, tmp_path / "still").go().judged.mean_loss
    aware = dataclasses.replace(further, qat_bits=BITS, qat_group_size=GROUP)
    lost = afterwards - plain.judged.mean_loss
    found = TrainingRun(target, both, kept, aware, tmp_path / "aware").go().judged.mean_loss
    assert found - plain.judged.mean_loss < lost / 2


def test_a_stopped_run_goes_on_bit_for_bit(target, corpus, start, tmp_path):
    """A checkpoint of rounded weights: what was learnt below one step of the rounding is lost."""
    whole = TrainingRun(target, corpus, start, AWARE, tmp_path / "whole").go()
    first = TrainingRun(target, corpus, start, AWARE, tmp_path / "parts")
    first.go(lambda: first.progress.step == 3)
    same(TrainingRun(target, corpus, start, AWARE, tmp_path / "parts").go().tensors, whole.tensors)
    saved = read_tensors(tmp_path / "whole" / "checkpoints" / "step-0000006")
    quantization = choose_quantization(start.config.matrix_shapes(), BITS, GROUP)
    weight = "layers.0.mlp.down_proj.weight"
    assert not mx.allclose(saved[weight], fake_quantized(saved, quantization)[weight]).item()
