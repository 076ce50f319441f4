"""Trials where the speed profile says that no draft could pay."""

from __future__ import annotations

import pytest
from helpers.hand_made import hand_made_profile

from dspark_mlx.calibration.sts import identity
from dspark_mlx.schedulers import schedule
from dspark_mlx.schedulers.auto import AutoScheduler
from dspark_mlx.schedulers.copies import WIDEST
from dspark_mlx.schedulers.memory import PairMemory
from dspark_mlx.types import Round

GAMMA = 7


def decided(row: float, rejected: bool, tokens: int = 1000) -> tuple[int, float, list[int]]:
    """Tokens, milliseconds and verify lengths of a request on a device where each row costs."""
    verify = [row * i for i in range(1, 34)]
    profile = hand_made_profile(verify, draft=8.0, plain=10.0)
    policy = AutoScheduler(PairMemory(profile.widened(WIDEST), identity(GAMMA))).start(GAMMA)
    count, milliseconds, lengths = 0, 0.0, []
    while count < tokens:
        if parked := policy.park(64 + count, GAMMA):
            for _ in range(parked):
                policy.learn(Round((0,), seconds=0.01))
            count, milliseconds = count + parked, milliseconds + 10 * parked
            continue
        length = schedule(policy, [0.9] * GAMMA, GAMMA, True)
        accepted = 0 if rejected else length
        took = 8 + verify[length]
        made = (0,) * (accepted + 1), GAMMA, length, accepted, (0.9,) * GAMMA
        policy.learn(Round(*made, seconds=took / 1e3))
        count, milliseconds = count + accepted + 1, milliseconds + took
        lengths.append(length)
    return count, milliseconds, lengths


def test_trials_of_what_a_round_takes_lose_little():
    """A twentieth of a short answer lost to rounds that the profile knew to be slow."""
    count, milliseconds, lengths = decided(row=10.0, rejected=True)
    assert 1 <= len(lengths) <= 3 and max(lengths) == 1
    assert count * 10 / milliseconds > 0.985
    short, milliseconds, _ = decided(row=10.0, rejected=True, tokens=96)
    assert short * 10 / milliseconds == 1


def test_drafts_that_gain_little_even_if_all_are_accepted_are_not_tried():
    """Six plain steps staked on a gain of a few percent at best."""
    _, _, lengths = decided(row=8.0, rejected=True)
    assert len(lengths) <= 3
    count, milliseconds, lengths = decided(row=4.0, rejected=False)
    assert len(lengths) > 50 and count * 10 / milliseconds > 1.5


def test_steps_that_started_two_forwards_or_none_are_not_timed():
    """A last step of no time: three of them, and plain decoding seems eight times as fast."""
    profile = hand_made_profile([99.0] * 33, draft=99.0, plain=10.0)
    memory = PairMemory(profile.widened(WIDEST), identity(GAMMA))
    policy = AutoScheduler(memory).start(GAMMA)
    for steady, seconds, plain in ((False, 1e-4, 10), (False, 0.02, 10), (True, 0.02, 20)):
        assert policy.park(64, GAMMA) > 6
        for _ in range(6):
            policy.learn(Round((0,), seconds=seconds, steady=steady))
        assert memory.times(0.0).at(64).plain == pytest.approx(plain)
