"""Whether rounds wait for confidences: where they are worth more than the wait costs."""

from __future__ import annotations

import random

import pytest

from dspark_mlx.calibration.sts import identity
from dspark_mlx.schedulers import schedule
from dspark_mlx.schedulers.auto import AutoScheduler
from dspark_mlx.schedulers.memory import PairMemory
from dspark_mlx.schedulers.proposer import DRAFTER
from dspark_mlx.schedulers.speed_profile import SpeedProfile
from dspark_mlx.types import Round

GAMMA = 5
VERIFY = (10.0, 11.0, 12.0, 13.0, 14.0, 15.0)
ROUNDS = 80
GOOD, BAD = 0.98, 0.1
"""Chances of slots; a block is all of one kind."""


def waited(informed: bool, cost: float, temperature: float = 0.0) -> list[bool]:
    """Which of a request's drafted rounds waited for confidences.

    Args:
        informed: whether confidences are the chances; else they are drawn beside them.
        cost: what waiting adds to a round, as a part of it.
        temperature: the request's.
    """
    rng = random.Random(0)
    memory = PairMemory(
        SpeedProfile("toy", "", "toy", (64,), (VERIFY,), (2.0,), (10.0,), {}, ((0.0,) * 6,)),
        identity(GAMMA),
    )
    policy = AutoScheduler(memory).start(GAMMA, temperature)
    waits: list[bool] = []
    while len(waits) < ROUNDS:
        if policy.park(64, GAMMA):
            policy.learn(Round((0,), seconds=0.010))
            continue
        chance = rng.choice((GOOD, GOOD, BAD))
        shown = [chance if informed else rng.uniform(0.3, 0.7) for _ in range(GAMMA)]
        asked = policy.reads_confidence
        scheduled = schedule(policy, shown if asked else (), GAMMA, temperature == 0)
        right = [rng.random() < chance for _ in range(scheduled)]
        accepted = [*right, False].index(False)
        seconds = (2.0 + VERIFY[scheduled]) / 1e3 * (1 + cost * asked) * rng.uniform(0.99, 1.02)
        policy.learn(
            Round(
                (0,) * (accepted + 1),
                drafted=GAMMA,
                proposer=DRAFTER,
                scheduled=scheduled,
                accepted=accepted,
                confidence=tuple(shown),
                seconds=seconds,
            )
        )
        waits.append(asked)
    return waits


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rounds_wait_for_confidences_that_choose_lengths(temperature):
    """Confidences that say which blocks are right, on a device where a wait costs nothing."""
    waits = waited(informed=True, cost=0.0, temperature=temperature)
    assert all(waits[:3]) and sum(waits[40:]) > 30


def test_rounds_do_not_wait_for_a_head_that_knows_nothing():
    """A GPU that stands still in every round of a drafter whose confidences change no length."""
    assert sum(waited(informed=False, cost=0.1)[20:]) <= 6


def test_rounds_do_not_wait_where_it_costs_more_than_it_gains():
    """A good head on a device that takes half a round longer to say what it knows."""
    waits = waited(informed=True, cost=0.5)
    assert 0 < sum(waits[40:]) < 8
