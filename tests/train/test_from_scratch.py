"""A drafter trained from nothing, against the golden one of the same shape."""

from __future__ import annotations

import time

import mlx.core as mx
import numpy as np
import pytest
from helpers.pairs import TARGET, golden, make_decoder

from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.decoder import Decoder
from dspark_mlx.drafters.assemble import assemble
from dspark_mlx.engine.state import make_engine
from dspark_mlx.schedulers.make import make_scheduler
from dspark_mlx.targets.tap import Target
from dspark_mlx.train.data.batch_decode import Job, batch_decode
from dspark_mlx.train.data.corpus import Corpus
from dspark_mlx.train.new_drafter import first_weights
from dspark_mlx.train.run import InitialDrafter, TrainingRun
from dspark_mlx.train.settings import TrainingSettings
from dspark_mlx.train.step.batches import BatchSettings
from dspark_mlx.train.step.learner import Recipe
from dspark_mlx.train.step.objective import Objective

TEXTS, JUDGED, PROMPT, ANSWER, STOP = 5000, 60, 10, 64, 1
LENGTH = PROMPT + ANSWER


def own_prompts(model, count, seed):
    """Beginnings that the target writes at temperature 1 after one random token."""
    first = np.random.default_rng(seed).integers(2, 512, count).tolist()
    starts = [Job([token], PROMPT - 1, 1.0) for token in first]
    opened = batch_decode(model, starts, (), mx.random.key(seed), 500)
    return [[token, *new] for token, new in zip(first, opened, strict=True)]


def own_texts(model):
    """Such prompts and the target's greedy answers."""
    prompts = own_prompts(model, TEXTS, 0)
    jobs = [Job(prompt, ANSWER, 0.0) for prompt in prompts]
    answers = batch_decode(model, jobs, {STOP}, mx.random.key(1), 500)
    texts = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    answer = [np.arange(len(text)) >= PROMPT for text in texts]
    offsets = np.cumsum([0, *map(len, texts)])
    return Corpus(np.concatenate(texts).astype(np.uint16), np.concatenate(answer), offsets)


def tokens_a_round(pair, prompts):
    """Greedy, whole blocks."""
    done = [r for p in prompts for r in pair.rounds(p, max_tokens=ANSWER, stop_tokens=(STOP,))]
    return sum(len(r.tokens) for r in done) / len(done)


@pytest.mark.slow
def test_as_good_as_the_golden_drafter_in_two_minutes(target_model, tmp_path):
    """Learning that is too slow, stalls, or learns what the loop does not ask for."""
    fresh = own_prompts(target_model, JUDGED, 99)
    config = convert_drafter(golden("vanilla"), tmp_path / "golden", progress=False)
    theirs = make_decoder(target_model, "vanilla", tmp_path / "theirs", "full")
    golden_one = tokens_a_round(theirs, fresh)
    theirs.engine.target.close()
    target = Target(target_model, config.taps, "golden target")
    begun = time.perf_counter()
    try:
        start = InitialDrafter(config, first_weights(config, 0), {"data": "own"}, 0.0)
        settings = TrainingSettings(
            Recipe(600, 6e-3),
            # Learns fastest what is judged here, at this size.
            Objective(ce=1.0, l1=0.0),
            BatchSettings(tokens=1024, max_length=LENGTH, anchors_every=4, bucket=LENGTH),
            evaluate_every=600,
            save_every=600,
        )
        result = TrainingRun(
            target, own_texts(target_model), start, settings, tmp_path / "run"
        ).go()
        seconds = time.perf_counter() - begun
        drafter = assemble(
            config, result.tensors, target.embed, target.logits, mx.float32, dequantize=False
        )
        decoder = Decoder(make_engine(target, drafter, make_scheduler("full")), TARGET, {})
        ours = tokens_a_round(decoder, fresh)
    finally:
        target.close()
    print(
        f"\n{ours:.3f} tokens a round, golden {golden_one:.3f}, {seconds:.0f} s to write and train"
    )
    assert ours >= golden_one
