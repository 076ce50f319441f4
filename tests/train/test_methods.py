"""Every drafting method that can be trained: its forward is the drafter's, and it learns."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from helpers.observed import observed
from helpers.pairs import TARGET
from helpers.slow_cases import some_slow
from helpers.toys import HIDDEN, example_config, toy_target, toy_tensors
from helpers.training_toys import PROMPT, SMALL, one_text_twice, same

from dspark_mlx.decoder import Decoder
from dspark_mlx.drafters.assemble import assemble
from dspark_mlx.drafters.tensors import DrafterTensors
from dspark_mlx.engine.state import make_engine
from dspark_mlx.errors import InputError
from dspark_mlx.schedulers.make import make_scheduler
from dspark_mlx.targets.tap import Target
from dspark_mlx.train.designs import DESIGNS, DrafterDesign
from dspark_mlx.train.new_drafter import first_weights, needs_mask, new_config
from dspark_mlx.train.run import InitialDrafter, TrainingRun
from dspark_mlx.train.step.chain import step_mask
from dspark_mlx.train.step.forward import Features, TrainingBatch
from dspark_mlx.train.step.learner import Recipe
from dspark_mlx.train.step.methods import FORWARDS

VOCABULARY, LENGTH, ANCHORS = 12, 14, (1, 4, 6)
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "dspark": [{}],
    "dflash2": [{"selector_top_k": VOCABULARY}, {"conv_kernel_size": 0, "conv_group_size": 0}],
    "eagle3": [
        {},
        {"window": 3},
        {"tap_norms": "each", "residual": "normed", "feedback": "normed"},
    ],
    "mtp": [{}, {"state": "raw", "feedback": "raw", "order": "hidden"}],
}
CASES = [(name, own) for name, variants in VARIANTS.items() for own in variants]


def test_every_trained_method_is_tested():
    """A method that is added to one table and not to the others."""
    assert FORWARDS.keys() == DESIGNS.keys() == VARIANTS.keys()


@pytest.mark.parametrize(("method", "own"), CASES)
def test_the_forward_in_training_is_the_drafters(method, own):
    """Rows, positions or tokens shifted by one in training, which lowers acceptance in silence."""
    target = toy_target(VOCABULARY)
    config = example_config(target, method, **own)
    tensors = toy_tensors(config)
    rng = np.random.default_rng(5)
    text = mx.array(rng.integers(0, VOCABULARY, LENGTH).astype(np.int32))
    taps = [mx.array(rng.standard_normal((LENGTH, HIDDEN)).astype(np.float32)) for _ in config.taps]
    stored = DrafterTensors(config, tensors, mx.float32, dequantize=False)
    batch = TrainingBatch(
        mx.stack([text[::-1], text]),
        mx.array([ANCHORS, ANCHORS]),
        mx.ones((2, len(ANCHORS), config.gamma), dtype=mx.bool_),
    )
    features = Features([mx.stack([tap[::-1], tap]) for tap in taps], mx.zeros((2, LENGTH, HIDDEN)))
    blocks = FORWARDS[method](config, target.embed, False)(stored, batch, features)
    found = blocks.hidden.reshape(2, len(ANCHORS), config.gamma, -1)[1]
    logits = target.logits(found)
    if blocks.vectors is not None:
        vectors = blocks.vectors.reshape(2, len(ANCHORS), config.gamma, -1)[1]
        logits = logits + vectors @ blocks.w2.T
    drafter = assemble(config, tensors, target.embed, target.logits, mx.float32, dequantize=False)
    for block, anchor in enumerate(ANCHORS):
        context = drafter.new_context()
        drafter.extend(context, [tap[:anchor] for tap in taps], text[:anchor])
        given = iter(text[anchor + 1 :].split(LENGTH - anchor - 1))
        draft = observed(
            drafter, context, text[anchor : anchor + 1], lambda *_, given=given: (next(given), None)
        )
        assert mx.allclose(found[block], draft.hidden, rtol=1e-4, atol=1e-4)
        # Where a selector chose from a few, the others are not compared.
        compared = mx.isfinite(draft.logits)
        difference = mx.where(compared, logits[block] - draft.logits, 0)
        assert compared.any() and mx.abs(difference).max().item() < 1e-3
    target.close()


@pytest.mark.parametrize("method", FORWARDS)
def test_what_is_computed_again_has_the_same_gradients(method):
    """Weights that are constants in the backward pass, and are never learnt."""
    target = toy_target(VOCABULARY)
    config = example_config(target, method)
    rng = np.random.default_rng(5)
    batch = TrainingBatch(
        mx.array(rng.integers(0, VOCABULARY, (1, LENGTH)).astype(np.int32)),
        mx.array([ANCHORS]),
        mx.ones((1, len(ANCHORS), config.gamma), dtype=mx.bool_),
    )
    taps = [mx.array(rng.standard_normal((1, LENGTH, HIDDEN)).astype(np.float32))] * len(
        config.taps
    )

    def gradients(checkpoint):
        forward = FORWARDS[method](config, target.embed, checkpoint)

        def loss(tensors):
            stored = DrafterTensors(config, tensors, mx.float32, dequantize=False)
            hidden = forward(stored, batch, Features(taps, taps[0])).hidden
            return mx.sin(hidden).sum()

        return mx.grad(loss)(toy_tensors(config))

    plain, again = gradients(False), gradients(True)
    for name, value in plain.items():
        assert mx.allclose(value, again[name], rtol=1e-3, atol=1e-4), name
    assert mx.abs(plain["fc.weight"]).max().item() > 0
    target.close()


def test_the_mask_of_a_step_is_the_definition():
    """A row that sees the target's features of its own block, or another block's rows."""
    length, steps, window = 7, 3, 4
    found = np.array(step_mask(length, steps, window))
    assert found.shape == (length, steps * length)
    for row, column in np.ndindex(*found.shape):
        step, position = divmod(column, length)
        first = row - steps + 1
        own = position <= first if step == 0 else position == first + step
        assert found[row, column] == (own and position > row - window)


def golden_start(method, target_model):
    """First weights of a method for the golden target, and the target tapped for them."""
    config = json.loads((TARGET / "config.json").read_text())
    design = DrafterDesign(method, block_size=4, intermediate_size=64)
    if needs_mask(design):
        design = dataclasses.replace(design, mask_token_id=1, layers=1)
    target = Target(target_model, (), "golden target")
    made = new_config(design, target, config, "golden", 0.0)
    target.close()
    target = Target(target_model, made.taps, "golden target")
    return target, InitialDrafter(made, first_weights(made, 1), {"data": "greedy"}, 0.0)


def tokens_a_round(target, config, tensors, prompt):
    """Greedy, whole blocks."""
    drafter = assemble(config, tensors, target.embed, target.logits, mx.float32, dequantize=False)
    decoder = Decoder(make_engine(target, drafter, make_scheduler("full")), TARGET, {})
    done = list(decoder.rounds(prompt, max_tokens=24, stop_tokens=()))[1:]
    return sum(len(r.tokens) for r in done) / len(done)


@pytest.mark.parametrize("method", FORWARDS)
def test_a_method_learns(method, target_model, corpus, tmp_path):
    """A method whose gradients do not reach its weights."""
    target, start = golden_start(method, target_model)
    try:
        settings = dataclasses.replace(
            SMALL, recipe=Recipe(16, 1e-2), held_out=1, evaluate_every=16, save_every=16
        )
        run = TrainingRun(target, one_text_twice(corpus), start, settings, tmp_path / "run")
        before = run._evaluate()
        result = run.go()
        assert result.judged.mean_loss < 0.7 * before.mean_loss
        prompt = corpus[0].tokens[: PROMPT + 1].tolist()
        untrained = tokens_a_round(target, start.config, start.tensors, prompt)
        assert tokens_a_round(target, start.config, result.tensors, prompt) > untrained + 0.5
    finally:
        target.close()


# test_run.py stops DSpark's.
@pytest.mark.parametrize("method", some_slow(FORWARDS, ("eagle3",)))
def test_a_method_goes_on_after_a_stop(method, target_model, corpus, tmp_path):
    """A method whose run cannot be stopped, or ends elsewhere than without the stop."""
    target, start = golden_start(method, target_model)
    try:
        settings = dataclasses.replace(SMALL, recipe=Recipe(6, 1e-2), held_out=1, save_every=5)
        both = one_text_twice(corpus)
        whole = TrainingRun(target, both, start, settings, tmp_path / "whole").go()
        first = TrainingRun(target, both, start, settings, tmp_path / "parts")
        assert first.go(lambda: first.progress.step == 3).ended == "stopped"
        resumed = TrainingRun(target, both, start, settings, tmp_path / "parts").go()
        same(resumed.tensors, whole.tensors)
    finally:
        target.close()


@pytest.mark.parametrize(
    ("method", "chosen"),
    [("eagle3", {"rank": 8}), ("mtp", {"taps": 2}), ("dflash2", {"head": "rnn"})],
)
def test_what_a_method_does_not_have_is_refused(method, chosen, target_model):
    """A choice that changes nothing."""
    target = Target(target_model, (), "golden target")
    try:
        with pytest.raises(InputError, match=f"{method} with --{next(iter(chosen))}"):
            new_config(DrafterDesign(method=method, **chosen), target, {}, "golden", 0.0)
    finally:
        target.close()
