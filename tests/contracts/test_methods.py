"""What every drafting method keeps to; one that `METHODS` names is tested without being asked."""

from __future__ import annotations

import dataclasses
from itertools import product

import mlx.core as mx
import numpy as np
import pytest
from helpers.pairs import tokens_of
from helpers.slow_cases import some_slow
from helpers.toys import (
    HORIZON,
    METHOD_CASES,
    PROMPT,
    engine_of,
    exact,
    example_config,
    misfit,
    sampled,
    toy_target,
    toy_tensors,
)

from dspark_mlx.checkpoint.layout import check_tensors, stored_shapes
from dspark_mlx.drafters.methods import read_config
from dspark_mlx.engine.rounds import rounds
from dspark_mlx.engine.state import Engine
from dspark_mlx.errors import InputError
from dspark_mlx.sampling import greedy
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.types import Round

VOCABULARY = 6
ROWS = 9


@pytest.fixture(params=METHOD_CASES)
def method(request):
    return request.param


@pytest.fixture
def target():
    return toy_target(VOCABULARY)


@pytest.fixture
def config(method, target):
    return example_config(target, method)


@pytest.fixture
def engine(target, config):
    return engine_of(target, FullScheduler(), config)


def draft_after(engine, rows: int, pieces: int):
    """The block after `rows` committed tokens, whose features came in pieces."""
    drafter, rng = engine.drafter, np.random.default_rng(2)
    context = drafter.new_context()
    width = drafter.config.target_hidden_size
    taps = rng.standard_normal((len(drafter.config.taps), rows, width)).astype(np.float32)
    tokens = rng.integers(0, VOCABULARY, rows)
    for i, part in enumerate(np.array_split(np.arange(rows), pieces)):
        drafter.extend(context, [mx.array(t[part]) for t in taps], mx.array(tokens[part]))
        if i % 2 == 0:
            drafter.flush(context)
    return context, drafter.draft(context, mx.array([1]), greedy)


def test_its_configuration_survives_the_file(config):
    assert read_config(config.to_dict(), "test") == config


def test_its_configuration_is_read_strictly(config):
    """A key that nobody reads, or a missing one that something else stands in for."""
    data = config.to_dict()
    with pytest.raises(InputError, match="unknown keys nonsense"):
        read_config(data | {"nonsense": 1}, "test")
    fields = [f for f in dataclasses.fields(config) if f.default is dataclasses.MISSING]
    required = next(f.name for f in fields if f.name in config.EXAMPLE)
    with pytest.raises(InputError, match=f"no {required}"):
        read_config({k: v for k, v in data.items() if k != required}, "test")


def test_its_tensors_are_checked(config):
    """A tensor left out or one too many, which loading would not notice."""
    tensors = toy_tensors(config)
    assert tensors.keys() == stored_shapes(config).keys()
    check_tensors(config, tensors, "test")
    first = next(iter(tensors))
    with pytest.raises(InputError, match="no tensor"):
        check_tensors(config, {n: t for n, t in tensors.items() if n != first}, "test")


def test_a_block_has_gamma_tokens_and_their_confidences(engine):
    _, draft = draft_after(engine, ROWS, 1)
    config = engine.drafter.config
    assert draft.tokens.shape == (config.gamma,)
    assert (draft.confidence is not None) == config.has_confidence
    if config.has_confidence:
        assert draft.confidence.shape == (config.gamma,)


def test_the_context_comes_in_any_pieces(engine):
    """A drafter whose block depends on how the prompt was cut into chunks."""
    _, whole = draft_after(engine, ROWS, 1)
    for pieces in (2, 4, ROWS):
        _, draft = draft_after(engine, ROWS, pieces)
        assert draft.tokens.tolist() == whole.tokens.tolist()


def test_a_draft_leaves_nothing_behind(engine):
    """Rejected rows that later blocks attend to."""
    context, first = draft_after(engine, ROWS, 3)
    again = engine.drafter.draft(context, mx.array([1]), greedy)
    assert context.length == ROWS
    assert again.tokens.tolist() == first.tokens.tolist()


def greedy_rounds(engine, prompt) -> list[Round]:
    sampler = make_sampler(Sampling(), VOCABULARY)
    return list(rounds(engine, prompt, max_tokens=9, stop_tokens=(), sampler=sampler))


def test_greedy_output_is_plain_decodings(engine, target):
    """Rows of accepted drafts, or of rejected ones, that are kept wrongly."""
    plain, partly = Engine(target, None, FullScheduler()), 0
    for before in product(range(VOCABULARY), (0, 3)):
        made = greedy_rounds(engine, (*before, *PROMPT))
        assert tokens_of(made) == tokens_of(greedy_rounds(plain, (*before, *PROMPT)))
        partly += sum(0 < round_.accepted < round_.scheduled for round_ in made)
    assert partly > 0


# A drafter of hyper-connections takes seconds to draft so often.
@pytest.mark.parametrize(
    "method",
    some_slow(METHOD_CASES, [name for name in METHOD_CASES if not name.startswith("deepseek_v4")]),
)
def test_sampled_output_has_the_targets_distribution(engine, target, config):
    """q that is not what the tokens were drawn from: nothing else shows it."""
    probabilities = exact(target, lambda row, _: np.exp(row - np.logaddexp.reduce(row)))
    samplers = (
        make_sampler(Sampling(temperature=1.0, seed=seed), VOCABULARY) for seed in range(300)
    )
    counts = sampled(engine, samplers, config.gamma)
    assert counts.shape == (VOCABULARY,) * HORIZON
    assert misfit(counts, probabilities) < 1
