"""The schedule of several requests: lossless, and no slower than what it chooses between."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from dspark_mlx.calibration.by_temperature import Calibrations
from dspark_mlx.calibration.sts import Calibration
from dspark_mlx.schedulers.batch import BatchSchedule, Candidate, weighs_times
from dspark_mlx.schedulers.batch_times import BatchTimes
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.schedulers.make import make_scheduler
from dspark_mlx.schedulers.round_times import PLAIN, RoundTimes
from dspark_mlx.schedulers.speed_profile import SpeedProfile
from dspark_mlx.types import Round

GAMMA = 4
MEANS = (0.8,) * GAMMA
POLICY = FullScheduler().start(GAMMA)
CALIBRATION = Calibration((1.0,) * GAMMA, 10, MEANS, 0.5, (MEANS,))


def profile(row_ms: float, base_ms: float = 10.0, **changes) -> SpeedProfile:
    """A target whose forward has a fixed cost and one for each row."""
    verify = tuple(base_ms + row_ms * rows for rows in range(1, 9))
    values = {
        "contexts": (64,),
        "verify": (verify,),
        "draft": (2.0,),
        "plain": (verify[0],),
        "batches": {},
        "verify_spread": ((0.0,) * 8,),
    }
    return SpeedProfile("toy", "", "toy", **(values | changes))


def schedule(speed: SpeedProfile, mean: float = 0.8) -> BatchSchedule:
    """A schedule that has timed plain steps, which take what the profile says."""
    times = BatchTimes(speed, GAMMA)
    for count in (1, 2, 4, 8, 16):
        for _ in range(2):
            times.learn(count, PLAIN, 64, times.at(count, PLAIN, 64))
    means = (mean,) * GAMMA
    calibration = replace(CALIBRATION, means=means, typical=(means,))
    return BatchSchedule(times, Calibrations({0.0: calibration}))


def candidates(
    made: BatchSchedule, count: int, deterministic: bool = True, judged: int = 60
) -> list[Candidate]:
    """Requests of which so many drafts were judged, as expected."""
    beliefs = [made.start(POLICY, 0.0) for _ in range(count)]
    for belief in beliefs:
        belief.evidence = judged
    return [Candidate(b, 64, GAMMA, deterministic, not deterministic) for b in beliefs]


def test_verify_lengths_fall_as_requests_rise():
    """A batch whose rows are as cheap as a single request's."""
    made = schedule(profile(row_ms=1.0))
    confidence = [0.9, 0.8, 0.7, 0.6]
    lengths = [made.lengths(candidates(made, n), [confidence] * n)[0] for n in (1, 2, 4, 8, 16, 64)]
    assert lengths[0] == GAMMA
    assert lengths == sorted(lengths, reverse=True) and lengths[-1] < GAMMA


def test_one_sure_request_is_verified_as_far_as_it_pays_for_all():
    """A width that is chosen by each request for itself, though all pay for the widest."""
    made = schedule(profile(row_ms=0.01))
    sure, unsure = [0.95] * GAMMA, [0.05] * GAMMA
    assert made.lengths(candidates(made, 2), [sure, unsure]) == [GAMMA, GAMMA]
    made = schedule(profile(row_ms=10.0))
    assert made.lengths(candidates(made, 2), [sure, unsure])[0] < GAMMA


def test_the_first_round_of_a_kind_does_not_count():
    """A round that compiles, after which drafts look dear."""
    times = BatchTimes(profile(row_ms=1.0), GAMMA)
    expected = times.at(4, 5, 64)
    times.learn(4, 5, 64, 20 * expected)
    assert times.at(4, 5, 64) == expected and times.timed(4, plain=False) == 0
    times.learn(4, 5, 64, 2 * expected)
    assert times.at(4, 5, 64) == pytest.approx(2 * expected)


def test_times_of_a_busy_machine_end_where_rounds_get_much_faster():
    """A median, which rounds that compiled hold up for as many rounds again."""
    times = BatchTimes(profile(row_ms=1.0), GAMMA)
    expected = times.at(4, 5, 64)
    for factor in (20, 5, 4, 3, 1):
        times.learn(4, 5, 64, factor * expected)
    assert times.at(4, 5, 64) == pytest.approx(expected)
    times.learn(4, 5, 64, 2 * expected)
    times.learn(4, 5, 64, 1.1 * expected)
    assert times.at(4, 5, 64) == pytest.approx(1.1 * expected)  # one slow round changes little

    single = RoundTimes(profile(row_ms=1.0))
    costs = single.at(64)
    for factor in (5, 4, 3, 1, 1, 1):
        single.learn(64, GAMMA, factor * (costs.draft + costs.verify[GAMMA]))
    corrected = single.at(64)
    assert corrected.draft + corrected.verify[GAMMA] == pytest.approx(
        costs.draft + costs.verify[GAMMA]
    )


def test_the_first_drafted_round_after_plain_steps_is_not_timed():
    """Trials that look slow each time, since each draft takes in what came before: parked."""
    speed = profile(row_ms=50.0, base_ms=1.0)
    times = BatchTimes(speed, GAMMA)
    made = BatchSchedule(times, Calibrations({0.0: CALIBRATION}))
    requests = candidates(made, 4)
    width = GAMMA + 1
    expected = times.at(4, width, 64)

    def learn(wide: int, milliseconds: float) -> None:
        made.learn(requests, [None] * 4, wide, milliseconds / 1e3)

    for _ in range(4):
        learn(width, expected)
    for _ in range(20):
        learn(PLAIN, times.at(4, PLAIN, 64))
        learn(width, 5 * expected)
    assert times.at(4, width, 64) == pytest.approx(expected)
    for _ in range(20):
        learn(width, 5 * expected)
    assert times.at(4, width, 64) == pytest.approx(5 * expected)


def test_limits_of_requests_hold():
    made = schedule(profile(row_ms=0.01))
    short = [
        Candidate(each.belief, 64, i, True, False) for i, each in enumerate(candidates(made, 3))
    ]
    assert made.lengths(short, [[0.9] * GAMMA] * 3) == [0, 1, 2]


@pytest.mark.parametrize("slot", range(GAMMA))
def test_a_sampled_slot_is_admitted_by_nothing_after_it(slot):
    """The paper's appendix A: a choice that depends on the token that it judges."""
    made = schedule(profile(row_ms=4.0))
    requests = candidates(made, 3, deterministic=False)
    others = [[0.9, 0.2, 0.9, 0.9], [0.5, 0.9, 0.9, 0.1]]
    seen = [0.9, 0.6, 0.7, 0.8]
    admitted = set()
    for after in (0.0, 0.3, 0.99):
        own = seen[: slot + 1] + [after] * (GAMMA - slot - 1)
        admitted.add(made.lengths(requests, [own, *others])[0] > slot)
    assert len(admitted) == 1


def test_it_parks_where_drafts_lose_and_tries_again():
    """Sixteen requests that draft although their rows cost more than they bring."""
    made = schedule(profile(row_ms=50.0, base_ms=1.0), mean=0.2)
    requests = candidates(made, 16)
    parked = [made.park(requests) for _ in range(200)]
    assert parked[:32] == [True] * 32
    assert 0 < parked.count(False) < 5
    first = parked.index(False)
    assert not parked[first + 1] and parked[first + 2]  # the first one is not timed
    made = schedule(profile(row_ms=0.01))
    assert not made.park(candidates(made, 16))


def test_rounds_correct_the_profile():
    """Times of a profile that knows one request only, believed for sixteen."""
    times = BatchTimes(profile(row_ms=0.01), GAMMA)
    before = times.at(16, 3, 64)
    for _ in range(5):
        times.learn(16, 3, 64, 10 * before)
    assert times.at(16, 3, 64) == pytest.approx(10 * before)
    assert times.at(16, 4, 64) > 5 * before and times.at(8, 2, 64) > 5 * before
    assert times.at(16, PLAIN, 64) < 2 * before, "plain steps were not timed"


def test_a_profile_of_a_busy_machine_says_what_rounds_take_in_plain_steps():
    """Drafts that are never tried, since plain steps alone are known to be fast."""
    times = BatchTimes(profile(row_ms=1.0), GAMMA)
    before = times.at(8, 3, 64)
    for _ in range(2):
        times.learn(8, PLAIN, 64, 0.4 * times._base(8, PLAIN, 64))
    assert times.at(8, 3, 64) == pytest.approx(0.4 * before)


def test_plain_steps_are_timed_first():
    """Drafts that go on although plain steps are faster than the profile says."""
    times = BatchTimes(profile(row_ms=0.01), GAMMA)
    made = BatchSchedule(times, Calibrations({0.0: CALIBRATION}))
    requests = candidates(made, 4)
    assert [made.park(requests) for _ in range(6)] == [True] * 6 and made.parked == 0
    for _ in range(2):
        times.learn(4, 3, 64, times.at(4, 3, 64))
    times.learn(4, PLAIN, 64, 0.1)
    assert made.park(requests)
    made = schedule(profile(row_ms=1.0))
    requests = candidates(made, 5)
    parked = [made.park(requests) for _ in range(200)]
    assert not any(parked[:16]) and 10 < parked.count(True) < 30, "they are timed again"
    made = schedule(profile(row_ms=0.01))
    requests = candidates(made, 5)
    assert not any(made.park(requests) for _ in range(200)), "drafts that gain so much do not stop"


def test_drafts_that_seem_to_lose_by_little_are_timed():
    """Drafts that pay, given up for ever because a busy machine measured the profile."""
    made = schedule(profile(row_ms=3.0), mean=0.8)
    requests = candidates(made, 8)
    times = made._times
    assert [made.park(requests) for _ in range(3)] == [False] * 3, "nothing was timed yet"
    half = 0.5 * times.at(8, 2, 64)
    for _ in range(2):
        times.learn(8, 2, 64, half)
    assert not made.park(requests), "half the time is far below what was expected"
    made = schedule(profile(row_ms=3.0), mean=0.8)
    for _ in range(4):
        made._times.learn(8, 2, 64, made._times.at(8, 2, 64))
    assert made.park(requests), "they do lose"


def test_drafts_that_nothing_is_known_of_are_tried():
    """A new drafter that never drafts, since several requests have decoded from the first on."""
    made = schedule(profile(row_ms=3.0), mean=0.8)
    for _ in range(3):
        made._times.learn(8, 2, 64, made._times.at(8, 2, 64))
    assert not made.park(candidates(made, 8, judged=0))


def test_measured_batches_are_used():
    speed = profile(row_ms=1.0, batches={1: (11.0,) * 8, 4: tuple(100.0 + i for i in range(8))})
    times = BatchTimes(speed, GAMMA)
    draft = times.at(4, 3, 64) - 102.0
    assert 2.0 < draft < 10.0
    assert times.at(8, 3, 64) > 102.0 + draft


def test_what_its_rounds_accept_counts():
    made = schedule(profile(row_ms=1.0))
    requests = candidates(made, 2)
    before = made.lengths(requests, [(), ()])
    for _ in range(40):
        rounds = [Round((1,), drafted=GAMMA, scheduled=GAMMA, accepted=0) for _ in requests]
        made.learn(requests, rounds, GAMMA + 1, 0.02)
    assert made.lengths(requests, [(), ()]) < before


def test_schedulers_that_weigh_no_times_schedule_by_themselves():
    """`full` that verifies less than the whole block because others decode too."""
    for name in ("full", "fixed:2", "threshold:0.5"):
        assert not weighs_times(make_scheduler(name))
    for name in ("prefix", "lagged", "auto"):
        assert weighs_times(make_scheduler(name, profile(1.0), CALIBRATION))


def test_threads_may_use_the_times_together():
    """Texts in one thread and submitted requests in another, which learn while the other reads."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(6):
            times = BatchTimes(profile(row_ms=1.0), GAMMA)

            def learn(times=times) -> None:
                for i in range(1200):
                    times.learn(2 + i // 2 % 40, i // 80 % 5, 64, 10.0 + i % 7)

            with ThreadPoolExecutor(1) as pool:
                learning = pool.submit(learn)
                while not learning.done():
                    assert times.timed(3, plain=True) >= 0 and times.at(3, 2, 64) > 0
                learning.result()
            assert times.timed(3, plain=True) > 0
    finally:
        sys.setswitchinterval(before)
