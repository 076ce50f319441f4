"""The choice of copies, and what outlives the requests of a target that drafts by copies alone."""

from __future__ import annotations

import random

import pytest
from helpers.hand_made import hand_made_profile

from dspark_mlx.schedulers.copies import CopyChoice, CopyPolicy, CopyScheduler
from dspark_mlx.schedulers.proposer import Offer
from dspark_mlx.schedulers.round_times import RoundTimes
from dspark_mlx.types import Round

VERIFY = [10 + 0.6 * i + 4 * (i > 8) for i in range(33)]
PROFILE = hand_made_profile(VERIFY, draft=3, plain=10)


def falling(rng: random.Random) -> list[float]:
    """Some survival curve, of good and of bad copies."""
    chance, survival = 1.0, []
    for _ in range(rng.randint(1, 32)):
        chance *= rng.choice((0.3, 0.8, 0.99))
        survival.append(chance)
    return survival


@pytest.mark.parametrize("drafts", [False, True])
def test_a_copy_is_chosen_where_it_is_ahead(drafts):
    """A copy that is refused unseen although it pays; a lead over the slower of two others."""
    rng, chosen = random.Random(0), 0
    choice, costs = CopyChoice(RoundTimes(PROFILE)), PROFILE.at(64)
    for _ in range(400):
        survival, block = falling(rng), falling(rng)[:7]
        rate, limit = rng.uniform(1, 4), rng.randint(1, 32)

        def speeds(chances, draft, limit=limit):
            return [
                10 * (1 + sum(chances[:n])) / (draft + VERIFY[n])
                for n in range(1, min(limit, len(chances)) + 1)
            ]

        other = max([rate, *speeds(block, 3)]) * 1.3 if drafts else rate * 1.15
        copies = speeds(survival, 0)
        best = copies.index(max(copies)) + 1 if max(copies) > other else 0
        offer = (lambda _, block=block: Offer("drafter", block, 3)) if drafts else None
        assert choice.length(64, survival, limit, rate, offer) == best
        chosen += best > 0
    assert 20 < chosen < 380 and costs.verify == tuple(VERIFY)
    assert choice.length(64, [], 8) == 0


def copied(policy: CopyPolicy, seconds: float) -> float:
    """Run a round of a copy; returns what it was expected to take."""
    length = policy.copy_length(64, [0.9] * 4, 8)
    assert length == 4
    tokens = tuple(range(length + 1))
    policy.learn(Round(tokens, length, length, length, proposer="lookup", seconds=seconds))
    assert policy.decision is not None
    return policy.decision.seconds


def test_times_of_copies_outlive_the_run(tmp_path):
    """Every run learns anew what a copy of this length takes on this machine."""
    path = tmp_path / "profiles" / "key.learned.json"
    policy = CopyScheduler(PROFILE, path).start(0)
    for _ in range(5):
        copied(policy, 0.02)
    assert not path.exists()
    policy.close()
    assert path.exists()
    assert copied(CopyScheduler(PROFILE).start(0), 0.02) == pytest.approx(0.0124)
    assert copied(CopyScheduler(PROFILE, path).start(0), 0.02) > 0.015
    assert copied(CopyScheduler(PROFILE, path).start(0, 1.0), 0.02) == pytest.approx(0.0124)
