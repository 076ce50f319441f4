"""A Gemma4 drafter and target against the PyTorch reference: alone, and in the decode loop."""

from __future__ import annotations

import mlx.core as mx
import pytest
from helpers.edits import config, tensors
from helpers.golden_rounds import FEEDS, ROUNDS, Case, check
from helpers.observed import observed
from helpers.pairs import GOLDEN, checkpoint, tokens_of, traces

import dspark_mlx
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.errors import InputError

NAME = "gemma4_vanilla"


@pytest.fixture
def decoder(tmp_path):
    source = checkpoint(NAME, tmp_path / "source")
    made = dspark_mlx.load(GOLDEN / "target_gemma4", source, "full", precision="float32")
    yield made
    made.engine.target.close()


@pytest.mark.parametrize("feed", FEEDS.values(), ids=FEEDS)
def test_rounds_equal_the_reference(decoder, feed):
    """A dropped layer scalar, scores scaled, a bias under the softcap, rope over the whole head,
    values roped or not normed, embeddings not scaled."""
    drafter = decoder.engine.drafter
    for index in ROUNDS:
        case = Case(NAME, index, drafter.config.target_hidden_size)
        context = drafter.new_context()
        feed(drafter, context, case.taps)
        check(observed(drafter, context, case.anchor), case.values)


def test_traces_equal_the_reference(decoder):
    """The pair in the loop: a target with shared keys, alternating masks and a softcap."""
    for trace in traces(NAME)[:6]:
        if trace["confidence_threshold"]:
            continue
        prompt = trace["prompt_ids"]
        rounds = list(decoder.rounds(prompt, 64, stop_tokens=[1]))
        assert prompt + tokens_of(rounds) == trace["output_ids"]
        committed = [len(done.tokens) for done in rounds[1:-1]]
        assert committed == trace["acceptance_lengths"][: len(committed)]


def test_the_layer_scalar_counts(tmp_path):
    """A buffer that a filter by name drops: the golden's own must differ from 1."""
    source = checkpoint(NAME, tmp_path / "changed")
    scalar = mx.load(str(source / "model.safetensors"))["layers.0.layer_scalar"]
    assert abs(scalar.item() - 1) > 1e-3


@pytest.mark.parametrize(
    "edit, parts",
    [
        (tensors(layers__1__layer_scalar=None), ("no tensor layers.1.layer_scalar",)),
        (config(final_logit_softcapping=None), ("no final_logit_softcapping",)),
        (config(hidden_activation="silu"), ("hidden_activation 'silu'", "gelu_pytorch_tanh")),
        (config(enable_moe_block=True), ("enable_moe_block True", "none")),
        (config(rope_parameters={}), ("rope_parameters None", "full_attention")),
    ],
)
def test_what_is_missing_is_named(tmp_path, edit, parts):
    source = checkpoint(NAME, tmp_path / "source")
    edit(source)
    with pytest.raises(InputError) as error:
        convert_drafter(source, tmp_path / "out", progress=False)
    assert [part for part in parts if part not in str(error.value)] == []
    assert not (tmp_path / "out").exists()
