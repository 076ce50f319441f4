"""The schedulers' decisions, on numbers alone."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from time import perf_counter

import pytest
from helpers.hand_made import hand_made_profile

from dspark_mlx import InputError
from dspark_mlx.calibration.sts import Calibration, identity
from dspark_mlx.schedulers import schedule
from dspark_mlx.schedulers.belief import Belief, Prior
from dspark_mlx.schedulers.make import SCHEDULERS, make_scheduler
from dspark_mlx.schedulers.pace import Pace, best_length
from dspark_mlx.schedulers.prefix import prefix_lengths
from dspark_mlx.schedulers.proposer import LEAST_EVIDENCE, Offer, best_offer
from dspark_mlx.types import Round

GAMMA = 4
CLIFF = hand_made_profile(verify=(10, 25, 26, 60, 61, 62), draft=2, plain=10)
STEPPED = hand_made_profile(verify=(10, 18, 19, 30, 31, 32), draft=2, plain=10)
FLAT = hand_made_profile(verify=(10,) * 6, draft=1, plain=10)
STEEP = hand_made_profile(verify=(10, 18, 26, 34, 42, 50), draft=5, plain=10)
GENTLE = hand_made_profile(verify=(10, 13, 16, 19, 22, 25), draft=4, plain=10)
DEAR = hand_made_profile(verify=(14, 18, 24, 31, 31, 31), draft=10, plain=10)
HOPELESS = hand_made_profile(verify=(10, 20, 30, 40, 50, 60), draft=50, plain=10)
DOUBTFUL = hand_made_profile(verify=(10, 20, 30, 40, 50, 60), draft=1, plain=10)


def prior(*means: float, persistence: float = 0.0) -> Calibration:
    return Calibration((1.0,) * len(means), 100, means, persistence, (means,))


def policy(name="auto", profile=STEPPED, means=(0.9, 0.9, 0.9, 0.9), **options):
    made = make_scheduler(name, profile, prior(*means), **options).start(GAMMA)
    made.park(0, GAMMA)
    return made


def drafts(
    made, confidence, chances, rounds: int, seed: int = 0, drafted_ms: float = 0
) -> list[bool]:
    """Walk rounds whose drafts survive by known chances; whether each drafted.

    They are timed where `drafted_ms` is given, plain steps at 10 ms.
    """
    rng, parked, drafted = random.Random(seed), 0, []
    for _ in range(rounds):
        parked = parked or made.park(0, GAMMA)
        drafted.append(parked == 0)
        if parked:
            parked -= 1
            made.learn(Round((0,), seconds=0.01 * (drafted_ms > 0)))
            continue
        scheduled = schedule(made, confidence, GAMMA, deterministic=False)
        accepted = 0
        while accepted < scheduled and rng.random() < chances[accepted]:
            accepted += 1
        made.learn(replace(done(confidence, scheduled, accepted), seconds=drafted_ms / 1e3))
    return drafted


def done(confidence, scheduled: int, accepted: int) -> Round:
    return Round((0,) * (accepted + 1), GAMMA, scheduled, accepted, tuple(confidence))


def certain(*means: float, persistence: float = 0.0) -> Prior:
    """A prior that takes confidences as they are."""
    tiny = [[1e-9 * (i == j) for j in range(3)] for i in range(3)]
    return Prior([0.0, 1.0, 0.0], tiny, list(means), persistence)


def test_a_belief_continues_from_what_it_has_seen():
    """Realised confidences lost, or means that ignore how sure the last seen slot was."""
    belief = Belief(certain(0.8, 0.6, 0.5, 0.4, persistence=0.5))
    assert belief.survival(()) == pytest.approx([0.8, 0.48, 0.24, 0.096])
    # Slot 1 is 0.1 above its mean: slot 2 is expected 0.05 above its own, slot 3 0.025.
    expected = [0.9, 0.9 * 0.65, 0.9 * 0.65 * 0.525, 0.9 * 0.65 * 0.525 * 0.4125]
    assert belief.survival([0.9]) == pytest.approx(expected)
    assert belief.survival([0.9, 0.5, 0.4, 0.3]) == pytest.approx([0.9, 0.45, 0.18, 0.054])


HEADS = {"exact": 1.0, "inverted": -1.0, "too sure": 0.4, "useless": 0.0}


@pytest.mark.parametrize("head", HEADS)
def test_a_belief_learns_what_confidences_are_worth(head):
    """Confidences believed against all that was accepted, or ignored although they are right."""
    rng, belief = random.Random(3), Belief(Prior.of(identity(GAMMA)))
    for _ in range(150):
        confidence = [rng.choice((0.2, 0.5, 0.8)) for _ in range(GAMMA)]
        accepted = 0
        while accepted < GAMMA and rng.random() < chance(confidence[accepted], head):
            accepted += 1
        belief.learn(done(confidence, GAMMA, accepted))
    for confidence in (0.2, 0.5, 0.8):
        found = belief.survival([confidence] * GAMMA)[0]
        assert found == pytest.approx(chance(confidence, head), abs=0.13)


def chance(confidence: float, head: str) -> float:
    """What a head's confidence means: its log-odds times `HEADS`, and a little more than even."""
    odds = (confidence / (1 - confidence)) ** HEADS[head] * 1.5
    return odds / (1 + odds)


def test_a_belief_without_confidences_learns_from_what_was_judged():
    """Slots behind the first rejection counted as failures."""
    belief = Belief(Prior.of(identity(GAMMA)))
    for _ in range(100):
        belief.learn(done((), scheduled=1, accepted=1))
    first = belief.survival(())[0]
    for _ in range(10):
        belief.learn(done((), scheduled=4, accepted=1))
    assert first > 0.9 and belief.evidence == 100 + 2 * 10


def test_optimism_shrinks_with_evidence():
    """Hope that no number of rejected drafts ends."""
    belief = Belief(Prior.of(identity(GAMMA)))
    before = belief.survival((), optimism=1.0)[0] - belief.survival(())[0]
    for _ in range(30):
        belief.learn(done([0.5] * GAMMA, scheduled=4, accepted=2))
    assert 0 < belief.survival((), optimism=1.0)[0] - belief.survival(())[0] < before / 2


def test_a_calibration_weighs_as_much_as_it_was_fitted_on():
    """Three rounds of somebody's text taken for the truth, or three thousand ignored."""
    few, many = (
        Prior.of(Calibration((1.0,) * 4, rounds, (0.5,) * 4, 0.0, ((0.5,) * 4,)))
        for rounds in (3, 3000)
    )
    assert few.covariance[0][0] > 1.3 * many.covariance[0][0]
    assert few.evidence < 0.5 < many.evidence
    assert Prior.of(identity(GAMMA)).evidence == 0


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


def test_auto_crosses_a_cliff_that_prefix_stops_at():
    """A jagged cost whose second row does not pay and whose third does."""
    sure = [0.95, 0.95, 0.1, 0.1]
    assert schedule(policy("prefix", CLIFF), sure, GAMMA, deterministic=False) == 0
    assert schedule(policy("auto", CLIFF), sure, GAMMA, deterministic=False) == 2


def test_auto_uses_no_later_confidence_when_sampling():
    """A decision about slot 1 that changes with a later slot's realised confidence."""
    for later in itertools.product((0.0, 0.5, 1.0), repeat=3):
        assert schedule(policy(profile=CLIFF), [0.95, *later], GAMMA, deterministic=False) >= 1
    # When greedy it may: nothing else survives, and one row alone does not pay.
    proven = policy(profile=CLIFF)
    proven.learn(done([0.95] * GAMMA, GAMMA, GAMMA))
    proven.park(0, GAMMA)
    assert schedule(proven, [0.95, 0.0, 0.0, 0.0], GAMMA, deterministic=True) == 0


def test_lagged_ignores_the_block():
    """Section 5.2: confidences of this round used in it."""
    lagged = policy("lagged")
    assert not lagged.reads_confidence
    first = schedule(lagged, [0.9] * 4, GAMMA, deterministic=True)
    assert first == schedule(lagged, [0.0] * 4, GAMMA, deterministic=True) > 0
    for _ in range(40):
        lagged.learn(done([0.05] * 4, scheduled=first, accepted=0))
    assert lagged.park(0, GAMMA) > 0
    assert 0 < schedule(lagged, (), GAMMA, deterministic=True) < first


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


@pytest.mark.parametrize("name", ["auto", "lagged", "prefix"])
def test_free_rows_are_all_verified(name):
    assert schedule(policy(name, FLAT), [0.6] * 4, GAMMA, deterministic=True) == GAMMA


def test_drafting_stops_where_it_does_not_pay_and_is_tried_again():
    """Drafts that go on at a loss, or never come back."""
    made = make_scheduler("auto", GENTLE, identity(GAMMA)).start(GAMMA)
    drafted = drafts(made, [0.5] * GAMMA, (0.0,) * GAMMA, rounds=1000)
    trials = [i for i, drafts_ in enumerate(drafted) if drafts_]
    # No parking before drafts were judged.
    assert trials[:LEAST_EVIDENCE] == list(range(LEAST_EVIDENCE))
    gaps = [b - a for a, b in itertools.pairwise(trials[LEAST_EVIDENCE - 1 :])]
    assert 4 <= len(gaps) <= 60 and gaps[0] == 1 and min(gaps[-5:]) > 10


@pytest.mark.parametrize("confidence", [0.02, 0.5])
def test_confidences_alone_park_nothing(confidence):
    """A head that says of every good draft that it will be rejected, believed for good."""
    made = make_scheduler("auto", GENTLE, identity(GAMMA)).start(GAMMA)
    drafted = drafts(made, [confidence] * GAMMA, (0.95,) * GAMMA, rounds=100)
    assert sum(drafted) > 80


def test_a_useless_head_is_found_out():
    """Blocks believed to the end of a text because their confidences are high."""
    made = make_scheduler("auto", GENTLE, identity(GAMMA)).start(GAMMA)
    drafted = drafts(made, [0.97] * GAMMA, (0.0,) * GAMMA, rounds=200)
    assert sum(drafted) < 20


def test_a_trial_is_wide_enough_to_gain():
    """Trials of one slot where not even two tokens a round would pay: lost, whatever comes of them.

    Or trials of which nothing is verified, and nothing learned.
    """
    made, costs = make_scheduler("auto", DEAR, identity(GAMMA)).start(GAMMA), DEAR.at(0)
    waits = []
    for _ in range(5):
        waits.append(made.park(0, GAMMA))
        tried = schedule(made, [0.5] * GAMMA, GAMMA, deterministic=True)
        assert (1 + tried) * costs.plain > costs.draft + costs.verify[tried]
        made.learn(done([0.5] * GAMMA, tried, 0))
    assert waits[0] == 0 < max(waits)


def test_one_rejection_of_a_sure_draft_is_taken_seriously():
    """An update that moves too little where a confidence is extreme, so that it is made twice."""
    sure = (0.998,) * GAMMA
    belief = Belief(Prior.of(identity(GAMMA)))
    assert belief.survival(sure)[0] > 0.7
    belief.learn(done(sure, GAMMA, 0))
    assert belief.survival(sure)[0] < 0.35
    assert belief.survival((0.5,) * GAMMA)[0] > 0.35


def test_a_profile_of_a_busy_machine_is_doubted():
    """A measurement made under load by which nothing is ever drafted again."""
    scheduler = make_scheduler("auto", DOUBTFUL, identity(GAMMA))
    first = scheduler.start(GAMMA)
    # Rounds are as fast as one row; plain steps take what the profile says.
    drafted = drafts(first, [0.9] * GAMMA, (0.9,) * GAMMA, rounds=400, drafted_ms=11)
    assert not any(drafted[:30]) and sum(drafted[-100:]) > 90
    truly = scheduler.start(GAMMA, 1.0)
    assert sum(drafts(truly, [0.9] * GAMMA, (0.9,) * GAMMA, rounds=400, drafted_ms=21)) <= 4


def test_the_best_offer_wins():
    """Tokens that are there already losing to a dear draft; an offer made where none pays."""
    costs = GENTLE.at(0)
    copied = Offer("lookup", (0.9, 0.8, 0.7, 0.6), draft=0.0)
    drafted = Offer("drafter", (0.9, 0.8, 0.7, 0.6), draft=costs.draft)
    sure = Offer("drafter", (1.0, 1.0, 1.0, 1.0), draft=costs.draft)
    assert best_offer([drafted, copied], costs, 1.0, GAMMA)[0] is copied
    assert best_offer([copied, sure], costs, 1.0, GAMMA) == (sure, GAMMA)
    assert best_offer([copied], costs, 1.0, 1)[1] == 1
    assert best_offer([Offer("lookup", (0.1,), 0.0)], costs, 1.0, GAMMA) is None


def test_nothing_is_drafted_where_no_text_could_pay():
    """Probes, several plain steps each, on a device where even sure drafts lose."""
    made = make_scheduler("auto", HOPELESS, prior(1.0, 1.0, 1.0, 1.0)).start(GAMMA)
    assert all(made.park(context, GAMMA) > 0 for context in range(0, 2000, 32))
    # Near the end of a request two tokens are left, and one slot at most to be had.
    steep = make_scheduler("auto", STEEP, prior(1.0, 1.0, 1.0, 1.0)).start(GAMMA)
    assert steep.park(0, 1) > 0 and steep.park(0, GAMMA) == 0


def teach_useless(scheduler, temperature: float = 0.0) -> list[int]:
    """Requests of which no draft is accepted; how many rounds each drafted."""
    drafted = []
    for _ in range(6):
        request = scheduler.start(GAMMA, temperature)
        drafted.append(sum(drafts(request, [0.5] * GAMMA, (0.0,) * GAMMA, rounds=60)))
        request.close()
    return drafted


def test_greedy_and_sampled_requests_are_learned_apart():
    """Sampled requests, of whose drafts few survive, that park every greedy one."""
    scheduler = make_scheduler("auto", GENTLE, identity(GAMMA))
    drafted = teach_useless(scheduler, 1.0)
    assert drafted[-1] < drafted[0]
    assert scheduler.start(GAMMA, 1.0).park(0, GAMMA) > 0 == scheduler.start(GAMMA).park(0, GAMMA)


def test_what_is_learned_outlives_the_request_and_the_run(tmp_path):
    """A drafter that is useless for this target, tried at the start of every request."""
    path = tmp_path / "profiles" / "key.learned.json"

    def start(profile=GENTLE):
        return make_scheduler("auto", profile, identity(GAMMA), memory=path).start(GAMMA)

    assert start().park(0, GAMMA) == 0 and not path.exists()
    teach_useless(make_scheduler("auto", GENTLE, identity(GAMMA), memory=path))
    assert start().park(0, GAMMA) > 0
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    # Another profile's times are relative to other costs; beliefs stay.
    assert start(STEPPED)._times.to_dict() == {} and start(STEPPED).park(0, GAMMA) > 0


def test_a_damaged_memory_is_named_and_learned_anew(tmp_path):
    """A file cut off by a full disk that ends every command, or numbers edited into nonsense."""
    path = tmp_path / "key.learned.json"
    made = make_scheduler("auto", GENTLE, identity(GAMMA), memory=path)
    first = made.start(GAMMA)
    drafts(first, [0.5] * GAMMA, (0.0,) * GAMMA, rounds=60)
    first.close()
    good = json.loads(path.read_text())
    belief = good["beliefs"]["greedy"]
    broken = [
        "{",
        json.dumps(good | {"format_version": 9}),
        json.dumps(good | {"beliefs": {"warm": belief}}),
        json.dumps(good | {"beliefs": {"greedy": belief | {"means": [0.5] * 9}}}),
        json.dumps(good | {"beliefs": {"greedy": belief | {"covariance": [[-1, 0, 0]] * 3}}}),
        json.dumps(good | {"times": {"greedy": {"x 1": [1.0]}}}),
        json.dumps(good | {"times": {"greedy": {"1 1": [1e99]}}}),
    ]
    for text in broken:
        path.write_text(text)
        with pytest.warns(UserWarning, match=r"key\.learned\.json.*learned anew"):
            made = make_scheduler("auto", GENTLE, identity(GAMMA), memory=path)
        assert made.start(GAMMA).park(0, GAMMA) == 0


def test_a_memory_that_cannot_be_written_costs_nothing_else(tmp_path):
    """No decoding in a container with a read-only home."""
    (tmp_path / "file").write_text("")
    made = make_scheduler("auto", GENTLE, identity(GAMMA), memory=tmp_path / "file" / "k.json")
    with pytest.warns(UserWarning, match=r"k\.json: found .*is not kept") as warned:
        teach_useless(made)
    assert len(warned) == 1 and "\n" not in str(warned[0].message)
    assert made.start(GAMMA).park(0, GAMMA) > 0


def test_a_decision_says_why():
    """An explanation of another round, or costs that were not those decided by."""
    made = policy(profile=GENTLE)
    length = schedule(made, [0.9] * GAMMA, GAMMA, deterministic=True)
    made.learn(done([0.9] * GAMMA, length, length))
    found = made.decision
    assert found.milliseconds == tuple(4 + ms for ms in GENTLE.at(0).verify[: GAMMA + 1])
    assert found.seconds == pytest.approx(found.milliseconds[length] / 1e3)
    assert len(found.survival) == GAMMA and found.reason
    parked = policy(profile=HOPELESS)
    assert "no accepted length could pay" in parked.decision.reason
    assert parked.decision.survival == () and parked.decision.seconds == 0.01


def test_a_plain_step_behind_a_copy_is_explained_by_itself():
    """ "a copy is faster", and a copy's time, of plain steps."""
    made = policy(profile=hand_made_profile([10.0] * (GAMMA + 1), draft=200, plain=10))
    parked = made.decision
    made.learn(Round((1,), seconds=0.01))
    assert made.copy_length(0, [0.99] * GAMMA, GAMMA) == GAMMA
    tokens = tuple(range(GAMMA + 1))
    made.learn(Round(tokens, GAMMA, GAMMA, GAMMA, proposer="lookup", seconds=0.01))
    assert made.decision.reason == "a copy is faster"
    made.learn(Round((1,), seconds=0.01))
    assert made.decision == parked and "parked" in parked.reason


def test_plain_decoding_is_the_rate_to_beat():
    pace = Pace(0.5)
    assert pace.rate == 1.0
    for _ in range(50):
        pace.learn(3.0, 2.0)
    assert pace.rate == pytest.approx(1.5, abs=0.03)


@pytest.mark.parametrize("name", ["auto", "lagged"])
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


def test_a_scheduler_without_its_profile_is_refused():
    with pytest.raises(InputError, match="no speed profile"):
        make_scheduler("auto")
    with pytest.raises(InputError, match="widths 1 to 6"):
        make_scheduler("prefix", STEPPED, identity(6))


@pytest.mark.parametrize("name", ["fixed", "fixed:x", "fixed:-1", "fixed:1.5"])
def test_a_bad_fixed_length_is_refused(name):
    with pytest.raises(InputError, match="scheduler fixed"):
        make_scheduler(name)
