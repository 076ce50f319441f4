"""What every scheduler keeps to; one that `SCHEDULERS` names is tested without being asked."""

from __future__ import annotations

import pytest
from helpers.hand_made import hand_made_profile
from helpers.pairs import tokens_of
from helpers.toys import PROMPT, toy_engine, toy_target

from dspark_mlx.calibration.sts import identity
from dspark_mlx.engine.rounds import rounds
from dspark_mlx.engine.state import Engine
from dspark_mlx.errors import InputError
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers import schedule
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.schedulers.make import SCHEDULERS, make_scheduler, needs_profile
from dspark_mlx.types import Round

GAMMA = 4
PROFILE = hand_made_profile(verify=(1.0, 1.1, 1.2, 1.3, 1.4), draft=0.1, plain=1.0)


@pytest.fixture(params=SCHEDULERS)
def name(request):
    return request.param


@pytest.fixture
def made(name):
    return make_scheduler(SCHEDULERS[name].EXAMPLE, PROFILE, identity(GAMMA))


def test_its_class_describes_it(name):
    kind = SCHEDULERS[name]
    assert kind.USAGE.partition(":")[0] == kind.EXAMPLE.partition(":")[0] == name
    assert kind.HELP and not kind.HELP.endswith(".")


def test_a_profile_is_asked_for_where_it_is_needed(name):
    example = SCHEDULERS[name].EXAMPLE
    if needs_profile(example):
        with pytest.raises(InputError, match="no speed profile"):
            make_scheduler(example)
    else:
        assert make_scheduler(example) is not None


@pytest.mark.parametrize("argument", ["nonsense", "", "inf", "-inf", "nan", "-1", "2.5"])
def test_an_argument_that_means_nothing_is_refused(name, argument):
    """Infinity that ends in a traceback, -1 slots, 2.5 slots that silently become 2."""
    with pytest.raises(InputError, match="scheduler"):
        needs_profile(f"{name}:{argument}")


@pytest.mark.parametrize("deterministic", [True, False])
def test_it_admits_no_more_than_the_limit(made, deterministic):
    policy = made.start(GAMMA, 0.0 if deterministic else 1.0)
    confidence = [0.9] * GAMMA if policy.reads_confidence else []
    for limit in range(1, GAMMA + 1):
        policy.park(100, limit)
        length = schedule(policy, confidence, limit, deterministic)
        assert 0 <= length <= limit
        committed = (1,) * (length + 1)
        shown = tuple(confidence) or (0.5,) * GAMMA
        policy.learn(Round(committed, GAMMA, length, length, confidence=shown))


def test_requests_learn_apart(made):
    """One request whose drafts fail, and another that pays for it."""
    first, second = made.start(GAMMA), made.start(GAMMA)
    before = second.park(100, GAMMA)
    for _ in range(30):
        first.park(100, GAMMA)
        first.learn(Round((1,), GAMMA, GAMMA, 0, confidence=(0.1,) * GAMMA))
    assert second.park(100, GAMMA) == before


def test_greedy_output_is_plain_decodings(made):
    target = toy_target(12)

    def tokens(engine):
        sampler = make_sampler(Sampling(), target.vocab_size)
        made = rounds(engine, PROMPT, max_tokens=30, stop_tokens=(), sampler=sampler)
        return tokens_of(made)

    engine = toy_engine(target, made, gamma=GAMMA)
    assert tokens(engine) == tokens(Engine(target, None, FullScheduler()))
