"""A Gemma4 drafter and target against the PyTorch reference: alone, and in the decode loop."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from helpers.edits import config, tensors
from helpers.golden_rounds import FEEDS, ROUNDS, Case, check
from helpers.observed import observed
from helpers.pairs import GOLDEN, checkpoint, tokens_of, traces, with_scheduler
from helpers.slow_cases import some_slow
from mlx_lm.generate import generate_step

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


@pytest.mark.parametrize("index", some_slow(range(len(traces(NAME))), [1, 4, 7, 10]))
def test_traces_equal_the_reference(decoder, index):
    """The pair in the loop: a target with shared keys, alternating masks and a softcap."""
    trace = traces(NAME)[index]
    threshold, prompt = trace["confidence_threshold"], trace["prompt_ids"]
    scheduled = with_scheduler(decoder, f"threshold:{threshold}") if threshold else decoder
    rounds = list(scheduled.rounds(prompt, 64, stop_tokens=[1]))
    assert prompt + tokens_of(rounds) == trace["output_ids"]
    committed = [len(done.tokens) for done in rounds[1:-1]]
    assert committed == trace["acceptance_lengths"][: len(committed)]


def test_the_traces_are_longer_than_the_window(decoder):
    """Goldens that never wrap the target's window, which a cache that forgets nothing passes."""
    window = decoder.config["sliding_window"]
    lengths = [len(trace["output_ids"]) for trace in traces(NAME)]
    assert window < 40 < min(lengths)
    wrapped = [n for n in lengths if n > 3 * window]
    assert wrapped


LONG = [(20, 2048), (20, 7), (100, 2048), (100, 7)]


@pytest.mark.parametrize("case", some_slow(LONG, LONG[-1:]), ids=str)
def test_a_long_text_is_mlx_lms_own(decoder, case):
    """A window that wraps many times, in the prompt and in the text behind it."""
    length, chunk = case
    rng = np.random.default_rng(length)
    prompt, target = rng.integers(3, 512, length).tolist(), decoder.engine.target
    with target.untapped():
        steps = generate_step(mx.array(prompt), target.model, max_tokens=150)
        plain = [int(token) for token, _ in steps]
    rounds = list(decoder.rounds(prompt, 150, stop_tokens=(), prefill_step_size=chunk))
    assert tokens_of(rounds) == plain
    assert any(done.accepted for done in rounds) and len(set(plain)) > 5


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
