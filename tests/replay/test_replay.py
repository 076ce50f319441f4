"""Replay: exact walks through recorded texts, hindsight, and what the shipped profiles show."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
from helpers.hand_made import hand_made_profile
from helpers.pairs import traces
from helpers.slow_cases import some_slow

from dspark_mlx import InputError, bench
from dspark_mlx.calibration.by_temperature import Calibrations
from dspark_mlx.calibration.sts import fit, identity
from dspark_mlx.replay.record import record
from dspark_mlx.replay.recorded import RecordedRound, arrays, write_rounds
from dspark_mlx.replay.report import SHIPPED, find_profile, replay_report
from dspark_mlx.replay.simulate import ReplayText, best_fixed, oracle, replay, texts, total
from dspark_mlx.schedulers.fixed import FixedScheduler
from dspark_mlx.schedulers.make import make_scheduler
from dspark_mlx.schedulers.speed_profile import read_profile
from dspark_mlx.schedulers.threshold import ThresholdScheduler

PROFILES = sorted(path.stem for path in SHIPPED.glob("*.json"))
QUICK = ("apple-4bit", "jagged")
COSTS = hand_made_profile(verify=(10, 12, 14, 16, 18, 20), draft=3, plain=9)


def made_up(requests: int, seed: int, mixed: bool) -> list[RecordedRound]:
    """Rounds whose log-odds are their true odds; `mixed` texts are predictable or not at all."""
    rng, made, gamma = np.random.default_rng(seed), [], 7
    for request in range(requests):
        mean = (2.5 if request % 2 else -2.0) if mixed else rng.normal(0.8, 0.8)
        for position in range(200):
            logits = mean + rng.normal(0, 1.0) + rng.normal(0, 0.7, gamma)
            kept = rng.random(gamma) < 1 / (1 + np.exp(-logits))
            accepted = int(np.cumprod(kept).sum())
            odds = tuple(logits.tolist())
            made.append(RecordedRound(request, "made up", 100 + position, odds, accepted))
    return made


def test_a_replay_is_the_loop(pair):
    """A walk that skips, repeats or misjudges rounds: lengths of the real loop."""
    decoder = pair("vanilla")
    prompts = [("golden", trace["prompt_ids"]) for trace in traces("vanilla")[:3]]
    recorded = texts(record(decoder.engine, prompts, 48, ()), identity(5))
    for value, ((_, prompt), text) in itertools.product(
        (0.0, 0.44, 0.45), zip(prompts, recorded, strict=True)
    ):
        real, walked = Noting(value), Noting(value)
        list(decoder.with_scheduler(real).rounds(prompt, 49, stop_tokens=()))
        replay(walked, text, COSTS)
        # Near the end the loop is limited by max_tokens, the replay by the recording.
        assert walked.rounds[:-6] == real.rounds[: len(walked.rounds) - 6] != [], value


class Noting(ThresholdScheduler):
    """Notes what every round scheduled and committed."""

    def __init__(self, value: float) -> None:
        super().__init__(value)
        self.rounds: list[tuple[int, int]] = []

    def learn(self, done) -> None:
        self.rounds.append((done.scheduled, len(done.tokens)))


def test_costs_are_added_up():
    """A draft that is free, a plain step that is a verify forward."""
    text = ReplayText("t", 0, (1, 0, 0), ((0.5,) * 5,) * 3)
    plain = replay(FixedScheduler(0), text, COSTS)
    assert (plain.milliseconds, plain.tokens, plain.blocks) == (27, 3, 0)
    two = replay(FixedScheduler(2), text, COSTS)
    # The first block commits two tokens; the last may verify one slot only.
    assert two.milliseconds == (3 + 14) + (3 + 12) and two.tokens == 3
    assert two.plain_milliseconds == 27 and two.accepted == 1


@pytest.mark.parametrize("mixed", [False, True], ids=["alike", "mixed"])
@pytest.mark.parametrize("name", some_slow(PROFILES, QUICK))
def test_auto_is_near_the_best_possible(name, mixed):
    """A policy that loses to a constant, or that learns too slowly: the promise of the default.

    The prior is fitted on other texts of the same kind.
    """
    profile = read_profile(SHIPPED / f"{name}.json")
    prior = fit(*arrays(made_up(12, seed=1, mixed=mixed)))
    recorded = texts(made_up(24, seed=2, mixed=mixed), identity(7))
    found = total(make_scheduler("auto", profile, prior), recorded, profile).speedup
    _, fixed = best_fixed(recorded, profile)
    possible = sum((oracle(text, profile) for text in recorded), start=type(fixed)()).speedup
    assert found >= 0.98 * fixed.speedup
    assert found >= 0.94 * possible
    if mixed and possible > 1.1 * fixed.speedup:
        assert found > fixed.speedup


@pytest.mark.parametrize("name", some_slow(PROFILES, QUICK))
def test_no_text_is_much_slower_than_plain(name):
    """A text without a single acceptable draft."""
    profile = read_profile(SHIPPED / f"{name}.json")
    prior = fit(*arrays(made_up(12, seed=3, mixed=False)))
    hopeless = ReplayText("t", 0, (0,) * 400, ((0.4, *(0.3,) * 6),) * 400)
    assert replay(make_scheduler("auto", profile, prior), hopeless, profile).speedup > 0.97


@pytest.mark.parametrize("name", some_slow(PROFILES, QUICK))
def test_the_oracle_is_not_beaten_by_a_constant(name):
    """An upper bound that is none; single texts can be lucky, for it knows odds, not outcomes."""
    profile = read_profile(SHIPPED / f"{name}.json")
    recorded = texts(made_up(20, seed=4, mixed=True), identity(7))
    outcomes = [oracle(text, profile) for text in recorded]
    _, fixed = best_fixed(recorded, profile)
    assert sum(outcomes[1:], start=outcomes[0]).speedup >= 0.995 * fixed.speedup


def test_the_command_prints_tables_and_json(tmp_path, capsys):
    file = tmp_path / "rounds.jsonl"
    write_rounds(file, made_up(3, seed=5, mixed=True))
    assert bench.main(["--replay", str(file), "--profile", "stepped", "--profile", "flat"]) == 0
    *lines, last = capsys.readouterr().out.strip().splitlines()
    data = json.loads(last)
    assert set(data) == {"stepped", "flat"} and "auto" in data["flat"]
    assert sum(line.startswith("auto") for line in lines) == 2


def test_sampled_rounds_are_replayed_at_their_temperature(tmp_path):
    """Greedy costs, a greedy prior or greedy's view of later slots for a sampled text; texts of two
    temperatures taken for one."""
    greedy = made_up(2, seed=7, mixed=False)
    hot = [
        dataclasses.replace(r, temperature=1.0, chances=(0.5,) * 7) for r in made_up(2, 8, False)
    ]
    recorded = texts([*greedy, *hot], Calibrations({0.0: identity(7), 1.0: identity(7)}))
    assert [text.temperature for text in recorded] == [0.0, 0.0, 1.0, 1.0]
    costs = dataclasses.replace(
        hand_made_profile(range(10, 26, 2), draft=3, plain=9), sampling=(4.0, 1.0, 0.5)
    )
    cold, warm = recorded[0], dataclasses.replace(recorded[0], temperature=1.0)
    for text, round_ms, plain_ms in ((cold, 3 + 14, 9), (warm, 7 + 16, 10)):
        found = replay(FixedScheduler(2), text, costs)
        # The last block may be shorter, and cheaper.
        assert found.milliseconds == pytest.approx(round_ms * found.rounds, abs=10)
        assert found.plain_milliseconds == plain_ms * found.tokens
        assert oracle(text, costs).plain_milliseconds == pytest.approx(plain_ms * 200, rel=0.05)

    class Watching(ThresholdScheduler):
        started: list[float] = []  # noqa: RUF012
        shown: list[int] = []  # noqa: RUF012

        def start(self, gamma, temperature=0.0):
            self.started.append(temperature)
            return self

        def admit(self, slot, seen):
            self.shown.append(len(seen) - slot)
            return True

    watching = Watching(0.5)
    replay(watching, warm, costs)
    assert watching.started == [1.0] and set(watching.shown) == {1}


def test_the_report_has_a_table_a_temperature(tmp_path):
    """Sampled and greedy texts judged together, by one best fixed length."""
    hot = [
        dataclasses.replace(r, temperature=0.7, chances=(0.5,) * 7) for r in made_up(2, 8, False)
    ]
    write_rounds(tmp_path / "r.jsonl", made_up(2, seed=7, mixed=False) + hot)
    found = json.loads(
        replay_report(tmp_path / "r.jsonl", ["flat"], None, greedy=True).splitlines()[-1]
    )
    assert set(found) == {"flat", "flat at temperature 0.7"}
    assert found["flat"] != found["flat at temperature 0.7"]


def test_unusable_replays_are_refused(tmp_path):
    file = tmp_path / "rounds.jsonl"
    write_rounds(file, made_up(1, seed=6, mixed=False))
    with pytest.raises(InputError, match=r"one of .*stepped"):
        find_profile("fast")
    with pytest.raises(InputError, match=r"calibration\.json"):
        replay_report(file, ["flat"], tmp_path, greedy=True)
    with pytest.raises(InputError, match="no readable file"):
        replay_report(tmp_path / "none.jsonl", ["flat"], None, greedy=True)
