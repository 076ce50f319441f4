"""A profile that takes plain steps for faster than they are: drafts are taken up again."""

from __future__ import annotations

from dspark_mlx.calibration.sts import identity
from dspark_mlx.schedulers import schedule
from dspark_mlx.schedulers.auto import AutoScheduler
from dspark_mlx.schedulers.memory import PairMemory
from dspark_mlx.schedulers.proposer import DRAFTER
from dspark_mlx.schedulers.speed_profile import SpeedProfile
from dspark_mlx.types import Round

GAMMA = 5
VERIFY = (10.0,) * (GAMMA + 1)


def drafted(plain_ms: float, accepted: list[int], rounds: int) -> list[bool]:
    """Which rounds drafted, on a profile whose plain steps take 4 ms.

    Args:
        plain_ms: what plain steps take in truth.
        accepted: of the first blocks; of all others everything.
        rounds: number of rounds.
    """
    speed = SpeedProfile("toy", "", "toy", (64,), (VERIFY,), (2.0,), (4.0,), {}, ((0.0,) * 6,))
    policy = AutoScheduler(PairMemory(speed, identity(GAMMA)), False).start(GAMMA)
    made, wait, waiting = [], 0, iter(accepted)
    for _ in range(rounds):
        wait = wait or policy.park(64, GAMMA)
        made.append(not wait)
        if wait:
            wait -= 1
            policy.learn(Round((0,), seconds=plain_ms / 1e3))
            continue
        scheduled = schedule(policy, (), GAMMA, True)
        right = min(next(waiting, GAMMA), scheduled)
        policy.learn(
            Round(
                (0,) * (right + 1),
                drafted=GAMMA,
                proposer=DRAFTER,
                scheduled=scheduled,
                accepted=right,
                seconds=0.012,
            )
        )
    return made


def test_drafts_go_on_when_plain_steps_turn_out_slow():
    """A request that waits out the whole pause of drafts which never were too dear."""
    made = drafted(plain_ms=9.0, accepted=[1, 1, 1, 1, 1], rounds=60)
    first = made.index(False)
    assert True in made[first : first + 20] and all(made[-20:])


def test_a_true_price_leaves_the_pause_as_it_is():
    """Drafts that lose, tried again at every look at the costs."""
    made = drafted(plain_ms=4.0, accepted=[0] * 50, rounds=120)
    first = made.index(False)
    assert sum(made[first:]) <= 2
