"""The schedulers' decisions, on numbers alone."""

from __future__ import annotations

import itertools
import random
from time import perf_counter

import pytest
from helpers.hand_made import hand_made_profile

from dspark_mlx import InputError
from dspark_mlx.calibration.by_temperature import Calibrations
from dspark_mlx.calibration.sts import Calibration, identity
from dspark_mlx.schedulers import schedule
from dspark_mlx.schedulers.belief import Belief
from dspark_mlx.schedulers.make import SCHEDULERS, make_scheduler, needs_profile
from dspark_mlx.schedulers.pace import Pace, best_length
from dspark_mlx.schedulers.prefix import prefix_lengths
from dspark_mlx.types import Round

GAMMA = 4
CLIFF = hand_made_profile(verify=(10, 25, 26, 60, 61, 62), draft=2, plain=10)
STEPPED = hand_made_profile(verify=(10, 18, 19, 30, 31, 32), draft=2, plain=10)
FLAT = hand_made_profile(verify=(10,) * 6, draft=1, plain=10)
STEEP = hand_made_profile(verify=(10, 18, 26, 34, 42, 50), draft=5, plain=10)
HOPELESS = hand_made_profile(verify=(10, 20, 30, 40, 50, 60), draft=1, plain=10)


def prior(*means: float, persistence: float = 0.0) -> Calibration:
    return Calibration((1.0,) * len(means), 100, means, persistence, (means,))


def policy(name="expected", profile=STEPPED, means=(0.9, 0.9, 0.9, 0.9), **options):
    made = make_scheduler(name, profile, prior(*means), **options).start(GAMMA)
    made.park(0, GAMMA)
    return made


def done(confidence, scheduled: int, accepted: int) -> Round:
    return Round((0,) * (accepted + 1), GAMMA, scheduled, accepted, tuple(confidence))


def test_a_belief_continues_from_what_it_has_seen():
    """Realised confidences lost, or means that ignore how sure the last seen slot was."""
    belief = Belief(prior(0.8, 0.6, 0.5, 0.4, persistence=0.5))
    assert belief.survival(()) == pytest.approx([0.8, 0.48, 0.24, 0.096])
    # Slot 1 is 0.1 above its mean: slot 2 is expected 0.05 above its own, slot 3 0.025.
    expected = [0.9, 0.9 * 0.65, 0.9 * 0.65 * 0.525, 0.9 * 0.65 * 0.525 * 0.4125]
    assert belief.survival([0.9]) == pytest.approx(expected)
    assert belief.survival([0.9, 0.5, 0.4, 0.3]) == pytest.approx([0.9, 0.45, 0.18, 0.054])


def test_a_belief_learns_means_and_trust():
    """A request whose drafts are better or worse than the drafter's average."""
    belief = Belief(prior(0.5, 0.5, 0.5, 0.5))
    for _ in range(50):
        belief.learn(done([0.9] * 4, scheduled=4, accepted=4))
    assert belief.survival(())[0] > 0.85
    sure = belief.survival([0.9])[0]
    for _ in range(50):
        belief.learn(done([0.9] * 4, scheduled=4, accepted=0))
    assert belief.survival([0.9])[0] < 0.5 * sure


def test_a_belief_without_confidences_learns_from_what_was_judged():
    """Slots behind the first rejection counted as failures."""
    belief = Belief(prior(0.5, 0.5, 0.5, 0.5))
    for _ in range(100):
        belief.learn(done((), scheduled=4, accepted=1))
    first, second, third, _ = belief.survival(())
    assert first > 0.9 and second < 0.1 * first
    assert third == pytest.approx(0.5 * second)


@pytest.mark.parametrize("seed", range(20))
def test_the_best_length_is_the_best_of_all(seed):
    """A search that stops at the first length that does not pay."""
    rng = random.Random(seed)
    profile = hand_made_profile([rng.uniform(5, 40) for _ in range(9)], draft=3, plain=10)
    costs, survival, rate = profile.at(0), [], rng.uniform(1, 2)
    product = 1.0
    for _ in range(8):
        survival.append(product := product * rng.random())
    worth = [
        1 + sum(survival[:n]) - rate / costs.plain * costs.verify[n] for n in range(len(survival))
    ]
    length, best = best_length(survival, costs, rate, 0, len(survival) - 1)
    assert best == pytest.approx(max(worth)) and worth[length] == pytest.approx(best)


def test_expected_crosses_a_cliff_that_prefix_stops_at():
    """A jagged cost whose second row does not pay and whose third does."""
    sure = [0.95, 0.95, 0.1, 0.1]
    assert schedule(policy("prefix", CLIFF), sure, GAMMA, deterministic=False) == 0
    assert schedule(policy("expected", CLIFF), sure, GAMMA, deterministic=False) == 2


def test_expected_uses_no_later_confidence_when_sampling():
    """A decision about slot 1 that changes with a later slot's realised confidence."""
    for later in itertools.product((0.0, 0.5, 1.0), repeat=3):
        assert schedule(policy(profile=CLIFF), [0.95, *later], GAMMA, deterministic=False) >= 1
    # When greedy it may: nothing else survives, and one row alone does not pay.
    assert schedule(policy(profile=CLIFF), [0.95, 0.0, 0.0, 0.0], GAMMA, deterministic=True) == 0


def test_lagged_ignores_the_block():
    """Section 5.2: confidences of this round used in it."""
    lagged = policy("lagged")
    assert not lagged.reads_confidence
    first = schedule(lagged, [0.9] * 4, GAMMA, deterministic=True)
    assert first == schedule(lagged, [0.0] * 4, GAMMA, deterministic=True) > 0
    for _ in range(40):
        lagged.learn(done([0.05] * 4, scheduled=first, accepted=0))
    assert schedule(lagged, (), GAMMA, deterministic=True) == 0


def brute_force(survival, rate) -> list[int]:
    """Algorithm 1, slot by slot over a sorted list."""
    candidates = sorted(
        (
            (-odds, request, slot)
            for request, row in enumerate(survival)
            for slot, odds in enumerate(row)
        )
    )
    lengths, tokens, rows = [0] * len(survival), float(len(survival)), len(survival)
    best = tokens * rate(rows)
    for negative, request, _ in candidates:
        tokens, rows = tokens - negative, rows + 1
        if tokens * rate(rows) <= best:
            break
        best = tokens * rate(rows)
        lengths[request] += 1
    return lengths


@pytest.mark.parametrize("requests", [1, 2, 5, 17])
def test_prefix_is_algorithm_1(requests):
    """Slots out of order, or admitted behind the one that ended the search."""
    rng = random.Random(requests)
    for _ in range(50):
        survival = []
        for _ in range(requests):
            product, row = 1.0, []
            for _ in range(7):
                row.append(product := product * rng.uniform(0.3, 1))
            survival.append(row)
        slope = rng.uniform(0.01, 1)
        assert prefix_lengths(survival, lambda rows, s=slope: 1 / (3 + s * rows)) == brute_force(
            survival, lambda rows, s=slope: 1 / (3 + s * rows)
        )


def test_prefix_of_blocks_without_slots():
    assert prefix_lengths([[], []], lambda rows: 1.0) == [0, 0]


@pytest.mark.parametrize("name", ["expected", "lagged", "prefix"])
def test_free_rows_are_all_verified(name):
    assert schedule(policy(name, FLAT), [0.6] * 4, GAMMA, deterministic=True) == GAMMA


def test_drafting_stops_where_it_does_not_pay_and_is_tried_again():
    """Drafts that go on at a loss, or never come back."""
    parked = make_scheduler("expected", STEEP, prior(0.2, 0.2, 0.2, 0.2)).start(GAMMA)
    gaps = []
    for _ in range(6):
        gaps.append(parked.park(0, GAMMA))
        for _ in range(gaps[-1]):
            parked.learn(Round((0,)))
        assert parked.park(0, GAMMA) == 0
        parked.learn(done([0.2] * 4, scheduled=0, accepted=0))
    assert gaps == [24, 48, 96, 192, 192, 192]


def test_nothing_is_drafted_where_no_text_could_pay():
    """Probes, several plain steps each, on a device where even sure drafts lose."""
    made = make_scheduler("expected", HOPELESS, prior(1.0, 1.0, 1.0, 1.0)).start(GAMMA)
    assert all(made.park(context, GAMMA) > 0 for context in range(0, 2000, 32))
    # Near the end of a request two tokens are left, and one slot at most to be had.
    steep = make_scheduler("expected", STEEP, prior(1.0, 1.0, 1.0, 1.0)).start(GAMMA)
    assert steep.park(0, 1) > 0 and steep.park(0, GAMMA) == 0


GENTLE = hand_made_profile(verify=(10, 13, 16, 19, 22, 25), draft=4, plain=10)
BY_HEAT = Calibrations({0.0: prior(*(0.9,) * 4), 0.7: prior(*(0.75,) * 4), 1.0: prior(*(0.3,) * 4)})


@pytest.mark.parametrize("name", ["expected", "lagged"])
def test_a_hopeless_sampled_request_parks_at_once(name):
    """Blocks drafted at a loss, because what is believed at first is that of greedy text."""
    scheduler = make_scheduler(name, GENTLE, BY_HEAT)
    assert scheduler.start(GAMMA, 1.0).park(0, GAMMA) > 0
    assert scheduler.start(GAMMA, 1.3).park(0, GAMMA) > 0
    for temperature in (0.0, 0.7):
        assert scheduler.start(GAMMA, temperature).park(0, GAMMA) == 0
    # Costs of sampling alone would not have parked it.
    assert scheduler.start(GAMMA).park(0, GAMMA) == 0


@pytest.mark.parametrize("name", ["expected", "lagged"])
def test_a_hopeless_text_parks_within_two_rounds(name):
    """A prior that outweighs what the request shows; a promising text given up as early."""
    for confidence, accepted, parks in ((0.2, 0, True), (0.75, 2, False)):
        made = make_scheduler(name, GENTLE, BY_HEAT).start(GAMMA, 0.7)
        blocks = 0
        while blocks < 12 and made.park(0, GAMMA) == 0:
            shown = [confidence] * GAMMA
            scheduled = schedule(made, shown, GAMMA, deterministic=False)
            made.learn(done(shown, scheduled, min(accepted, scheduled)))
            blocks += 1
        assert (1 <= blocks <= 2) if parks else blocks == 12


def test_a_promising_sampled_request_keeps_drafting_where_greedy_ones_do_not():
    """The coldest prior taken for every request, or the hottest."""
    upside_down = Calibrations({0.0: BY_HEAT.at(1.0), 1.0: BY_HEAT.at(0.0)})
    scheduler = make_scheduler("expected", GENTLE, upside_down)
    assert scheduler.start(GAMMA, 1.0).park(0, GAMMA) == 0 < scheduler.start(GAMMA).park(0, GAMMA)


def test_a_good_block_ends_the_parking():
    """A probe whose good news changes nothing."""
    made = make_scheduler("expected", FLAT, prior(0.01, 0.01, 0.01, 0.01)).start(GAMMA)
    assert made.park(0, GAMMA) > 0 and made.park(0, GAMMA) == 0
    made.learn(done([0.99] * 4, scheduled=4, accepted=4))
    assert made.park(0, GAMMA) == 0


def test_losses_are_limited():
    """Confidences that promise too much, paid for to the end of the text."""
    made, steps, blocks = policy(profile=STEPPED), 0, 0
    while steps < 1000:
        gap = made.park(0, GAMMA)
        steps += gap
        for _ in range(gap):
            made.learn(Round((0,)))
        if gap:
            continue
        made.learn(done([0.95] * 4, scheduled=2, accepted=0))
        blocks, steps = blocks + 1, steps + 1
    # A block costs 2.1 plain steps here and brings one token.
    assert 1.1 * blocks < 0.03 * steps + 5


def test_plain_decoding_is_the_rate_to_beat():
    pace = Pace(0.5)
    assert pace.rate == 1.0 and pace.park() == 24
    pace = Pace(1.5)
    assert pace.rate == 1.5 and pace.park() == 0


@pytest.mark.parametrize("name", ["expected", "lagged"])
def test_a_decision_takes_microseconds(name):
    """Reported, not asserted: a policy that does work it need not; the bound is wide."""
    made, confidence = policy(name), [0.9, 0.8, 0.7, 0.6]
    times = []
    for _ in range(500):
        started = perf_counter()
        made.park(100, GAMMA)
        length = schedule(made, confidence, GAMMA, deterministic=True)
        made.learn(done(confidence, length, 0))
        times.append(perf_counter() - started)
    print(f"{name}: {1e6 * sorted(times)[250]:.0f} us")


@pytest.mark.parametrize("kind", SCHEDULERS.values(), ids=SCHEDULERS)
def test_every_name_makes_a_scheduler(kind):
    assert make_scheduler(kind.EXAMPLE, STEPPED, identity(GAMMA)).start(GAMMA) is not None


def test_auto():
    """auto without a profile scheduling by one, or ignoring one that is there."""
    assert not needs_profile("auto") and needs_profile("expected")
    assert make_scheduler("auto").name == "full"
    assert make_scheduler("auto", STEPPED, identity(GAMMA)).name == "expected"


def test_a_scheduler_without_its_profile_is_refused():
    with pytest.raises(InputError, match="no speed profile"):
        make_scheduler("expected")
    with pytest.raises(InputError, match="widths 1 to 6"):
        make_scheduler("prefix", STEPPED, identity(6))


@pytest.mark.parametrize("name", ["fixed", "fixed:x", "fixed:-1", "fixed:1.5"])
def test_a_bad_fixed_length_is_refused(name):
    with pytest.raises(InputError, match="scheduler fixed"):
        make_scheduler(name)
