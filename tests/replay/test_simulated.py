"""Simulated requests: what they are made of, and the default scheduler on all of them."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import numpy as np
import pytest

from dspark_mlx.calibration.sts import identity
from dspark_mlx.replay.grid import GAMMA, grid, grid_table
from dspark_mlx.replay.report import SHIPPED
from dspark_mlx.replay.simulate import replay
from dspark_mlx.replay.simulated import ACCEPTANCES, HEADS, simulated_texts
from dspark_mlx.schedulers.make import make_scheduler
from dspark_mlx.schedulers.speed_profile import read_profile

PROFILES = {path.stem: read_profile(path) for path in sorted(SHIPPED.glob("*.json"))}


@pytest.mark.parametrize("acceptance", ACCEPTANCES)
def test_drafts_survive_by_the_chance_that_was_asked_for(acceptance):
    """A table of other drafters than its rows say."""
    made = simulated_texts(acceptance, "exact", 20, 200, GAMMA)
    first = [count > 0 for text in made for count in text.accepted]
    shown = [confidence[0] for text in made for confidence in text.confidence]
    assert mean(first) == pytest.approx(acceptance, abs=0.04)
    # An exact head's confidences are the chances themselves.
    assert mean(shown) == pytest.approx(acceptance, abs=0.04)


def test_heads_say_different_things_of_the_same_drafts():
    """Heads compared on other texts; two heads that are one."""
    by_head = {head: simulated_texts(0.6, head, 2, 50, GAMMA) for head in HEADS}
    drafts = {tuple(text.accepted for text in made) for made in by_head.values()}
    assert len(drafts) == 1
    firsts = {head: made[0].confidence[0] for head, made in by_head.items()}
    assert len(set(firsts.values())) == len(HEADS)
    exact, inverted = np.array(firsts["exact"]), np.array(firsts["inverted"])
    assert exact + inverted == pytest.approx(np.ones(GAMMA))
    assert all(0.3 <= c <= 0.7 for c in firsts["useless"])
    assert simulated_texts(0.6, "exact", 2, 50, GAMMA) == by_head["exact"]
    assert simulated_texts(0.6, "exact", 2, 50, GAMMA, seed=1) != by_head["exact"]


def test_a_useless_head_costs_little():
    """`auto` parked for good after a block or two, because confidences of 0.5 promise nothing."""
    cells = grid(
        {name: PROFILES[name] for name in ("jagged", "m3-ultra-4bit", "flat")},
        400,
        2,
        acceptances=(0.0, 0.8),
        heads=("useless",),
        calibrated=(False,),
    )
    assert len(cells) == 6
    assert min(cell.of_best for cell in cells) >= 0.94
    assert mean(cell.of_best for cell in cells) >= 0.97
    assert "| useless | " in grid_table(cells)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokens", "texts", "least", "middle"), [(400, 20, 0.95, 0.98), (96, 60, 0.93, 0.97)]
)
def test_auto_is_near_the_best_constant_everywhere(tokens, texts, least, middle):
    """A drafter, a head or a machine on which the default is a bad choice.

    With a fifth of the texts, the least cell says more of them than of the scheduler: where a
    request either parks or is three times as fast, a cell's standard error is then 0.05.
    """
    cells = grid(PROFILES, tokens, texts)
    assert len(cells) == len(ACCEPTANCES) * len(HEADS) * 2 * len(PROFILES)
    assert min(cell.of_best for cell in cells) >= least
    assert mean(cell.of_best for cell in cells) >= middle


WRONG = {
    "plain steps twice as dear": lambda p: replace(p, plain=tuple(2 * ms for ms in p.plain)),
    "plain steps cheaper": lambda p: replace(p, plain=tuple(ms / 1.6 for ms in p.plain)),
    "wide forwards twice as dear": lambda p: replace(p, verify=tuple(map(wide, p.verify))),
    "drafts four times as dear": lambda p: replace(p, draft=tuple(4 * ms for ms in p.draft)),
}


def wide(row: tuple[float, ...]) -> tuple[float, ...]:
    return (row[0], *(2 * ms for ms in row[1:]))


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("acceptance", [0.0, 0.95])
def test_a_wrong_profile_corrects_itself(wrong, acceptance):
    """A profile measured under load that decides for good; noise taken for a change."""
    true = PROFILES["jagged"]
    rng = np.random.default_rng(0)

    def noisy(milliseconds: float) -> float:
        return milliseconds * float(np.exp(0.08 * rng.normal())) * (3 if rng.random() < 0.03 else 1)

    def speedup(profile) -> float:
        scheduler = make_scheduler("auto", profile, identity(GAMMA))
        made = [replay(scheduler, text, true, stopwatch=noisy) for text in texts]
        return sum(made[1:], made[0]).speedup

    texts = simulated_texts(acceptance, "useless", 2, 400, GAMMA, seed=3)
    assert speedup(WRONG[wrong](true)) >= 0.93 * speedup(true)
