"""Training runs on the golden target: texts, first weights and settings that take seconds."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.train.data.batch_decode import Job, batch_decode
from dspark_mlx.train.data.corpus import Corpus
from dspark_mlx.train.new_drafter import first_weights
from dspark_mlx.train.run import InitialDrafter
from dspark_mlx.train.settings import TrainingSettings
from dspark_mlx.train.step.batches import BatchSettings
from dspark_mlx.train.step.learner import Recipe
from helpers.pairs import golden

PROMPT, ANSWER = 4, 28
SMALL = TrainingSettings(
    Recipe(12, learning_rate=2e-3),
    batches=BatchSettings(tokens=128, max_length=32, anchors_every=4, bucket=32),
    held_out=4,
    evaluate_every=4,
    save_every=6,
)


def greedy_texts(model, count, seed=0):
    """Greedy continuations of random prompts, as a corpus."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(2, 512, (count, PROMPT)).tolist()
    jobs = [Job(prompt, ANSWER, 0.0) for prompt in prompts]
    written = batch_decode(model, jobs, frozenset(), mx.random.key(0), count)
    tokens = np.array([p + list(w) for p, w in zip(prompts, written, strict=True)])
    answer = np.zeros(tokens.shape, dtype=bool)
    answer[:, PROMPT:] = True
    offsets = np.arange(count + 1) * tokens.shape[1]
    return Corpus(tokens.reshape(-1).astype(np.uint16), answer.reshape(-1), offsets)


def one_text_twice(corpus):
    """The first text, to learn from and to judge on."""
    text = corpus[0]
    offsets = np.array([0, 1, 2]) * len(text.tokens)
    return Corpus(np.tile(text.tokens, 2), np.tile(text.answer, 2), offsets)


def begun(folder):
    """New weights in the shape of the golden vanilla drafter."""
    config = convert_drafter(golden("vanilla"), folder / "golden", progress=False)
    return InitialDrafter(config, first_weights(config, 1), {"data": "greedy"}, 0.0)


def same(a, b):
    """Bit-equal tensors of the same names."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(np.array(value), np.array(b[name]), err_msg=name)
