"""What is sampled has the target's distribution: counted texts against exact enumeration.

Three tokens of a vocabulary of 6, through the real loop, against probabilities computed in NumPy.
Seeds are fixed; each comparison raises a false alarm once in 100,000. The wrong rules at the end
must fail it: they show what it can see.
"""

from __future__ import annotations

import itertools

import mlx.core as mx
import pytest
from helpers.hand_made import hand_made_profile
from helpers.reference_settings import no_repeats, reference
from helpers.slow_cases import some_slow
from helpers.toys import PROMPT, exact, misfit, sampled, toy_engine, toy_target

from dspark_mlx.calibration.sts import Calibration
from dspark_mlx.sampling import rejection
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.schedulers.make import make_scheduler

VOCABULARY = 6
TEXTS, MANY = 300, 1500
PROFILES = {
    "cliff": hand_made_profile((1, 1.9, 1.95, 2.0, 2.05, 4, 4.1, 4.2), draft=0.05, plain=1),
    "slope": hand_made_profile((1, 1.3, 1.6, 1.9, 2.2, 2.5, 2.8, 3.1), draft=0.05, plain=1),
}
SCHEDULERS = ("threshold:0.4", "prefix", "lagged", "auto", "fixed:1", "fixed:0")
SETTINGS = {
    "temperature": {"temperature": 0.6},
    "top_p": {"top_p": 0.8},
    "top_k": {"top_k": 3},
    "min_p": {"min_p": 0.2},
    "xtc": {"xtc_probability": 0.5, "xtc_threshold": 0.1},
    "repetition": {"repetition_penalty": 1.6},
    "presence": {"presence_penalty": 1.0},
    "frequency": {"frequency_penalty": 0.8},
    "bias": {"logit_bias": {0: 1.5, 3: -2.0}},
    "banned": {"banned_tokens": (4,)},
    "processor": {"logits_processors": (no_repeats,)},
}
RULES = {
    "block": {},
    "token": {"verification": "token"},
    "reproducible": {"reproducible": True},
    "greedy drafts": {"draft_temperature": 0.0},
    "hot drafts": {"draft_temperature": 1.7},
    "reproducible, greedy drafts": {"reproducible": True, "draft_temperature": 0.0},
}


@pytest.fixture
def target(request):
    """A toy target, untapped afterwards; a test gives its settings by indirection."""
    made = toy_target(VOCABULARY, **getattr(request, "param", {}))
    yield made
    made.close()


def compare(
    target, settings, scheduler="full", head="vanilla", gamma=4, texts=TEXTS, make=make_sampler
) -> float:
    """How far texts of these settings are from their distribution, see `toys.misfit`."""
    sampling = Sampling(**{"temperature": 1.0, "seed": 11, **settings})
    sampling.check()
    if isinstance(scheduler, str):
        scheduler = make_scheduler(scheduler)
    engine = toy_engine(target, scheduler, head, gamma)
    samplers = (make(sampling, VOCABULARY, len(PROMPT), i) for i in range(texts))
    counts = sampled(engine, samplers, gamma)
    return misfit(counts, exact(target, reference(**settings)))


@pytest.mark.parametrize("rule", some_slow(RULES, ("block", "token")))
def test_rules(target, rule):
    """A biased accept rule or residual, or drafts whose q is not what they were drawn from."""
    assert compare(target, RULES[rule]) < 1


@pytest.mark.parametrize("name", some_slow(SETTINGS, ("xtc", "processor")))
def test_settings(target, name):
    """A setting that is ignored, applied in another order, or to one side only."""
    assert compare(target, SETTINGS[name]) < 1


@pytest.mark.parametrize("head", some_slow(["none", "gated", "rnn", "eagle3"], ()))
def test_heads(target, head):
    """A head, or a method without one, whose q is not what its tokens were drawn from."""
    assert compare(target, {}, head=head) < 1


@pytest.mark.parametrize("gamma", some_slow([1, 2, 7], ()))
def test_block_lengths(target, gamma):
    assert compare(target, {}, gamma=gamma) < 1


def prior(gamma: int) -> Calibration:
    means = (0.6, 0.5, 0.5, 0.4, 0.4, 0.4, 0.4)[:gamma]
    return Calibration((1.0,) * gamma, 100, means, 0.5, (means,))


@pytest.mark.parametrize("name", some_slow(SCHEDULERS, ("auto",)))
def test_schedulers(target, name):
    """A schedule that looks at what it judges."""
    scheduler = make_scheduler(name, PROFILES["cliff"], prior(4))
    assert compare(target, {}, scheduler) < 1


@pytest.mark.slow
@pytest.mark.parametrize("target", [{"dtype": mx.bfloat16}], indirect=True)
def test_bfloat16_weights(target):
    """Probabilities computed in the weights' own type."""
    assert compare(target, {}, texts=MANY) < 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "pair", list(itertools.combinations(SETTINGS, 2)), ids=lambda pair: f"{pair[0]} and {pair[1]}"
)
def test_pairs_of_settings(target, pair):
    """Two settings in the wrong order."""
    assert compare(target, SETTINGS[pair[0]] | SETTINGS[pair[1]], texts=MANY) < 1


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["token", "reproducible", "greedy drafts"])
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_by_every_rule(target, name, rule):
    assert compare(target, RULES[rule] | SETTINGS[name], texts=MANY) < 1


@pytest.mark.slow
@pytest.mark.parametrize("gamma", range(1, 8))
@pytest.mark.parametrize("head", ["none", "vanilla", "gated", "rnn", "eagle3"])
@pytest.mark.parametrize("target", [{}, {"dtype": mx.bfloat16}], indirect=True, ids=["f32", "bf16"])
def test_heads_by_block_lengths(target, head, gamma):
    assert compare(target, {"temperature": 0.9}, head=head, gamma=gamma, texts=MANY) < 1


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["block", "token", "reproducible", "greedy drafts"])
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_by_every_rule(target, name, profile, rule):
    scheduler = make_scheduler(name, PROFILES[profile], prior(7))
    assert compare(target, RULES[rule], scheduler, gamma=7, texts=MANY) < 1


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_eagle3_by_every_rule(target, rule):
    assert compare(target, RULES[rule], head="eagle3", texts=MANY) < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_eagle3_by_every_setting(target, name):
    assert compare(target, SETTINGS[name], head="eagle3", texts=MANY) < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["auto", "fixed:1", "fixed:0"])
def test_eagle3_by_every_scheduler(target, name):
    """Those that need no confidence."""
    scheduler = make_scheduler(name, PROFILES["cliff"], prior(4), has_confidence=False)
    assert compare(target, {}, scheduler, head="eagle3", texts=MANY) < 1


@pytest.mark.parametrize("name", some_slow(RULES | SETTINGS, ("token",)))
def test_columns_of_each_slot(target, name):
    """Another slot's columns taken for those of a slot."""
    settings = (RULES | SETTINGS)[name]
    assert compare(target, settings, head="gemma4_assistant, clustered", gamma=3) < 1


def wrong(pretend):
    """`make_sampler` with drafts that are another thing than they say."""

    def make(*arguments):
        sampler = make_sampler(*arguments)
        honest = sampler.propose
        sampler.propose = lambda place, gamma: pretend(honest(place, gamma))
        return sampler

    return make


@pytest.mark.parametrize("rule", some_slow(["block", "token"], ("block",)))
def test_greedy_drafts_taken_for_samples_are_caught(target, rule):
    def pretend(pick):
        def greedy(*arguments):
            _, weights = pick(*arguments)
            return mx.argmax(weights, axis=-1).astype(mx.int32), weights

        return greedy

    assert compare(target, RULES[rule], make=wrong(pretend)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("target", [{"shift": 300.0}], indirect=True)
def test_a_bfloat16_softmax_is_caught(target, monkeypatch):
    """Logits near 300 are 2 apart in bfloat16; in float32 the shift changes nothing."""
    assert compare(target, {}, texts=MANY) < 1
    honest = rejection.normalize
    monkeypatch.setattr(
        rejection, "normalize", lambda w: honest(w.astype(mx.bfloat16)).astype(mx.float32)
    )
    assert compare(target, {}, texts=MANY) > 1


@pytest.mark.parametrize("rule", some_slow(["block", "token"], ("token",)))
def test_a_residual_that_is_not_clamped_is_caught(target, monkeypatch, rule):
    honest = mx.log

    class Unclamped:
        """`mx` for the residual, where what is negative counts by its size."""

        def __getattr__(self, name):
            return getattr(mx, name)

        def where(self, condition, taken, other):
            if not isinstance(other, float) or other != -mx.inf:
                return mx.where(condition, taken, other)
            return taken

        def log(self, x):
            return honest(mx.abs(x))

    monkeypatch.setattr(rejection, "mx", Unclamped())
    assert compare(target, RULES[rule]) > 1


@pytest.mark.slow
def test_a_leaking_schedule_is_caught(target):
    """A policy that is shown what only a deterministic rule may show, and uses it.

    schedulers/test_lossless_schedules.py shows it in every run.
    """

    class Leaking(FullScheduler):
        reads_confidence = True

        def admit(self, slot, seen):
            return seen[1] > 0.7

    def make(*arguments):
        sampler = make_sampler(*arguments)
        sampler.deterministic = True
        return sampler

    assert compare(target, {}, Leaking(), texts=MANY, make=make) > 1
