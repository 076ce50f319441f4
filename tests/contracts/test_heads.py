"""What every sequential head keeps to; a head that `HEADS` names is tested without being asked."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from helpers.pairs import tokens_of
from helpers.toys import PROMPT, engine_of, example_config, toy_target, toy_tensors

from dspark_mlx.drafters.heads import HEADS, head_matrices, head_vectors, load_head
from dspark_mlx.drafters.heads.base import HeadSizes, correct
from dspark_mlx.drafters.methods import read_config
from dspark_mlx.drafters.tensors import DrafterTensors
from dspark_mlx.engine.rounds import rounds
from dspark_mlx.engine.state import Engine
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers.full import FullScheduler

SIZES = HeadSizes(rank=8, hidden=32, vocabulary=12, output=12)


@pytest.fixture(params=HEADS)
def config(request):
    return example_config(toy_target(12), "dspark", head=request.param)


@pytest.fixture
def head(config):
    tensors = DrafterTensors(config, toy_tensors(config), mx.float32, dequantize=False)
    return load_head(config.head, tensors)


def test_it_names_its_tensors(config):
    """A tensor that is loaded but not in the folder's list, or listed and never read."""
    names = {*head_matrices(config.head, SIZES), *head_vectors(config.head, SIZES)}
    every = toy_tensors(config)
    own = {name for name in every if name.removesuffix(".weight") in names or name in names}
    for name in own:
        less = {other: value for other, value in every.items() if other != name}
        with pytest.raises(KeyError, match=name.removesuffix(".weight")):
            load_head(config.head, DrafterTensors(config, less, mx.float32, dequantize=False))


def test_blocks_side_by_side_are_as_blocks_alone(head):
    """Training runs many blocks at once, decoding one: a state that leaks between rows."""
    rng = np.random.default_rng(1)
    hidden = mx.array(rng.standard_normal((5, 3, SIZES.hidden)).astype(np.float32))
    tokens = mx.array(rng.integers(0, SIZES.vocabulary, (5, 3)), dtype=mx.int32)
    together, states = [], None
    for slot in range(5):
        vector, embedding, states = head.vector(tokens[slot], hidden[slot], states)
        together.append(vector)
        assert vector.shape == embedding.shape == (3, SIZES.rank)
    for block in range(3):
        state = None
        for slot in range(5):
            one = slice(block, block + 1)
            vector, _, state = head.vector(tokens[slot, one], hidden[slot, one], state)
            assert mx.allclose(vector, together[slot][one], atol=1e-5).item()


def test_it_corrects_by_w2(head):
    """Logits that are not base + W2 vector, which the draft vocabulary's cut relies on."""
    base, hidden = mx.zeros((1, SIZES.output)), mx.ones((1, SIZES.hidden))
    previous = mx.array([3])
    vector, _, _ = head.vector(previous, hidden, None)
    logits, _, _ = correct(head, base, previous, hidden, None)
    expected = np.array(vector) @ np.array(head.w2.weight).T
    np.testing.assert_allclose(np.array(logits), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected).max() > 1e-3


def test_its_configuration_survives_the_file(config):
    assert read_config(config.to_dict(), "test") == config


def test_greedy_output_is_plain_decodings(config):
    """A head that changes what is accepted instead of what is proposed."""
    target = toy_target(12)
    engine = engine_of(target, FullScheduler(), config)

    def tokens(engine):
        sampler = make_sampler(Sampling(), target.vocab_size)
        made = rounds(engine, PROMPT, max_tokens=40, stop_tokens=(), sampler=sampler)
        return tokens_of(made)

    assert tokens(engine) == tokens(Engine(target, None, FullScheduler()))
