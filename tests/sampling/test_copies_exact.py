"""Sampled texts with copies as drafts: counted against exact enumeration, as in test_exact."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from helpers.copying import AlwaysCopies
from helpers.hand_made import hand_made_profile
from helpers.reference_settings import no_repeats, reference
from helpers.slow_cases import some_slow
from helpers.toys import PROMPT, exact, misfit, sampled, toy_engine, toy_target

from dspark_mlx.calibration.sts import Calibration
from dspark_mlx.engine import propose
from dspark_mlx.engine.state import Engine
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers import Scheduler
from dspark_mlx.schedulers.copies import CopyScheduler
from dspark_mlx.schedulers.make import make_scheduler

VOCABULARY = 8
MEANS = (0.6, 0.5, 0.5, 0.4)
CHEAP = hand_made_profile([1 + 0.01 * i for i in range(33)], draft=0.3, plain=1)
# Every token follows each other one somewhere, so that there is always something to copy.
PAIRS = [token for pair in itertools.permutations(range(VOCABULARY), 2) for token in pair]
SETTINGS = {
    "block": {},
    "token": {"verification": "token"},
    "reproducible": {"reproducible": True},
    "top_p": {"top_p": 0.7, "temperature": 0.8},
    "xtc": {"xtc_probability": 0.5, "xtc_threshold": 0.1},
    "processor": {"logits_processors": (no_repeats,)},
    "greedy drafts": {"draft_temperature": 0.0},
}
SCHEDULERS: dict[str, Callable[[], Scheduler]] = {
    "always": AlwaysCopies,
    "now and then": lambda: AlwaysCopies(3),
    "alone": lambda: CopyScheduler(CHEAP),
    "auto": lambda: make_scheduler("auto", CHEAP, Calibration((1.0,) * 4, 9, MEANS, 0.5, (MEANS,))),
}


@pytest.fixture(scope="module")
def target():
    made = toy_target(VOCABULARY)
    yield made
    made.close()


def compare(target, settings, scheduler="always", texts=800) -> float:
    """How far texts with copies are from their distribution, see `toys.misfit`."""
    sampling = Sampling(**{"temperature": 1.0, "seed": 11, **settings})
    made = SCHEDULERS[scheduler]()
    engine = toy_engine(target, made) if scheduler == "auto" else Engine(target, None, made)
    samplers = (make_sampler(sampling, VOCABULARY, len(PROMPT), i) for i in range(texts))
    counts = sampled(engine, samplers, 4, reference=PAIRS)
    return misfit(counts, exact(target, reference(**settings)))


@pytest.mark.parametrize("name", some_slow(SETTINGS, ("block",)))
def test_copies_by_rule_and_setting(target, name):
    """A copy that is accepted by the drafter's rule, a residual that keeps the rejected token."""
    assert compare(target, SETTINGS[name], texts=1500 if name != "block" else 400) < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "always"])
@pytest.mark.parametrize("rule", ["block", "token"])
def test_copies_by_scheduler(target, name, rule):
    """A choice that knows what the target will say."""
    assert compare(target, SETTINGS[rule], name, texts=1500) < 1


def test_a_copy_taken_for_a_likely_draft_is_caught(target, monkeypatch):
    """What these tests can see: a copy whose tokens are said to be drawn from all tokens alike."""
    honest = propose.Draft

    def evenly(**parts):
        even = mx.zeros((parts["tokens"].size, VOCABULARY))
        ids = mx.arange(VOCABULARY, dtype=mx.int32)
        return honest(**parts | {"weights": even, "ids": ids, "columns": parts["tokens"]})

    monkeypatch.setattr(propose, "Draft", evenly)
    assert compare(target, {}, texts=300) > 1


def test_there_is_something_to_copy():
    assert set(itertools.pairwise(PAIRS)) >= set(itertools.permutations(range(VOCABULARY), 2))
    assert np.unique(PAIRS).size == VOCABULARY
