"""No schedule changes the sampled distribution (paper, appendix A), and one that leaks does.

Rounds are simulated with exact probabilities on small vocabularies, scheduled through the same
interface as the loop's. Seeds are fixed; with correct schedulers a 4-sigma check is crossed by
chance once in 16,000, a chi-square check at 1e-4 once in 10,000.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from helpers.hand_made import hand_made_profile

from dspark_mlx.calibration.by_temperature import Calibrations
from dspark_mlx.calibration.sts import Calibration, identity
from dspark_mlx.schedulers import Policy, schedule
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.schedulers.make import make_scheduler
from dspark_mlx.types import Round

DRAWS = 20_000
PROFILES = {
    # One row more does not pay, two do: whether to cross is decided at the first slot.
    "cliff": hand_made_profile(verify=(1.0, 1.75, 1.8, 3.0), draft=0.05, plain=1.0),
    # Every row pays for itself or not, by what the slot before it turned out to be.
    "slope": hand_made_profile(verify=(1.0, 1.4, 1.8, 2.2), draft=0.05, plain=1.0),
}
SCHEDULERS = ("full", "threshold:0.5", "threshold:0.85", "prefix", "lagged", "auto", "fixed:1")
Decide = Callable[[Policy, list[float]], int]


def honest(policy: Policy, confidence: list[float]) -> int:
    return schedule(policy, confidence, 2, deterministic=False)


def leaking(policy: Policy, confidence: list[float]) -> int:
    """All or nothing by the last confidence, which depends on the token in the first slot."""
    return 2 if confidence[1] > 0.5 else 0


class Pair:
    """A target and a drafter of two positions, as tables.

    `p1`, `q1` are `[vocabulary]`, `p2`, `q2` `[vocabulary, vocabulary]` by the first token.
    """

    def __init__(self, p1, q1, p2, q2) -> None:
        self.p, self.q = (p1, p2), (q1, q2)
        self.first = np.minimum(p1, q1).sum()
        self.second = np.minimum(p2, q2).sum(axis=1)

    def draws(self, rng: np.random.Generator, count: int):
        """Drafts, the uniform numbers that judge them, and what is sampled where none is kept."""
        vocabulary = len(self.p[0])
        x1 = rng.choice(vocabulary, count, p=self.q[0])
        x2 = _rows(rng, self.q[1][x1])
        plain1 = rng.choice(vocabulary, count, p=self.p[0])
        residual = np.maximum(self.p[0] - self.q[0], 0)
        other1 = rng.choice(vocabulary, count, p=residual / residual.sum())
        keep1 = rng.random(count) < (self.p[0] / self.q[0])[x1]
        keep2 = rng.random(count) < (self.p[1][x1, x2] / self.q[1][x1, x2])
        residual2 = np.maximum(self.p[1] - self.q[1], 0) + 1e-300
        other2 = _rows(rng, (residual2 / residual2.sum(axis=1, keepdims=True))[x1])
        return x1, x2, keep1, keep2, plain1, other1, other2


def _rows(rng, probabilities) -> np.ndarray:
    """One sample of every row."""
    edges = np.cumsum(probabilities, axis=1)
    return (rng.random((len(edges), 1)) * edges[:, -1:] > edges).sum(axis=1)


def run(
    pair: Pair, name: str, decide: Decide, seed: int, rounds: int = DRAWS, profile: str = "slope"
) -> np.ndarray:
    """The first two tokens after each of many rounds, int `[rounds, 2]`."""
    rng = np.random.default_rng(seed)
    prior = Calibration((1.0, 1.0), 100, (0.8, 0.6), 0.5, ((0.8, 0.9), (0.8, 0.3)))
    priors = Calibrations({0.0: identity(2), 1.0: prior})
    policy = make_scheduler(name, PROFILES[profile], priors).start(2, temperature=1.0)
    tokens = np.empty((rounds, 2), dtype=np.int64)
    for i, (x1, x2, keep1, keep2, plain1, other1, other2) in enumerate(
        zip(*(a.tolist() for a in pair.draws(rng, rounds)), strict=True)
    ):
        confidence = [float(pair.first), float(pair.second[x1])]
        # A parked policy makes plain steps, which sample from the target in any case.
        policy.park(0, 2)
        scheduled = decide(policy, confidence)
        second = -1
        if scheduled == 0:
            accepted, first = 0, plain1
        elif not keep1:
            accepted, first = 0, other1
        else:
            accepted, first = 1, x1
            if scheduled == 2:
                accepted, second = (2, x2) if keep2 else (1, other2)
        tokens[i] = first, second
        committed = (first,) * (accepted + 1)
        done = Round(committed, 2, scheduled, accepted, confidence=tuple(confidence))
        policy.learn(done)
    # Where the round gave one token, the next round's first token follows it: by induction it has
    # the target's distribution, if first tokens have.
    missing = tokens[:, 1] < 0
    tokens[missing, 1] = _rows(rng, pair.p[1][tokens[missing, 0]])
    return tokens


def appendix_a() -> Pair:
    """Target (0.7, 0.3), drafter (0.5, 0.5); after the second token little survives."""
    p2 = np.array([[0.5, 0.5], [0.99, 0.01]])
    q2 = np.array([[0.5, 0.5], [0.01, 0.99]])
    return Pair(np.array([0.7, 0.3]), np.array([0.5, 0.5]), p2, q2)


def deviation(tokens: np.ndarray, expected: float) -> float:
    """Of the share of first tokens that are 0, in standard errors."""
    share = (tokens[:, 0] == 0).mean()
    return float((share - expected) / np.sqrt(expected * (1 - expected) / len(tokens)))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_appendix_a(name, profile):
    """A scheduler that lets a token's own confidence decide whether it is verified."""
    tokens = run(appendix_a(), name, honest, seed=1, profile=profile)
    assert abs(deviation(tokens, 0.7)) < 4


def test_a_leaking_schedule_is_caught():
    """The check above, if it could not fail: the leak's share is appendix A's 0.85."""
    tokens = run(appendix_a(), "auto", leaking, seed=2)
    assert abs(deviation(tokens, 0.7)) > 30
    assert abs(deviation(tokens, 0.85)) < 4


def larger(seed: int) -> Pair:
    rng = np.random.default_rng(seed)
    p1, q1 = rng.dirichlet(np.full(12, 1.0), 2)
    p2, q2 = rng.dirichlet(np.full(12, 0.7), (2, 12)) + 1e-3
    totals = p2.sum(axis=1, keepdims=True), q2.sum(axis=1, keepdims=True)
    return Pair(p1, q1, p2 / totals[0], q2 / totals[1])


def chi_square(tokens: np.ndarray, pair: Pair) -> tuple[float, float]:
    """The statistic of the joint distribution of two tokens, and its 1 - 1e-4 quantile."""
    expected = (pair.p[0][:, None] * pair.p[1] * len(tokens)).ravel()
    counts = np.bincount(tokens[:, 0] * 12 + tokens[:, 1], minlength=144)
    few = expected < 5
    expected = np.append(expected[~few], max(expected[few].sum(), 1e-9))
    counts = np.append(counts[~few], counts[few].sum())
    if expected[-1] < 5:
        expected, counts = expected[:-1], counts[:-1]
    degrees = len(expected) - 1
    # Wilson and Hilferty's approximation of the quantile.
    limit = degrees * (1 - 2 / (9 * degrees) + 3.719 * np.sqrt(2 / (9 * degrees))) ** 3
    return float(((counts - expected) ** 2 / expected).sum()), float(limit)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_joint_distribution_of_two_tokens(name):
    """A bias too small for two tokens' vocabulary, or one that shows in the second token."""
    pair = larger(5)
    statistic, limit = chi_square(run(pair, name, honest, seed=3, rounds=DRAWS), pair)
    assert statistic < limit


def test_the_interface_hides_what_leaks():
    """A policy that finds a later slot's confidence in what it is shown."""

    class Curious(FullScheduler):
        def admit(self, slot, seen):
            return seen[slot + 1] > 0.5

    with pytest.raises(IndexError):
        schedule(Curious(), [0.9, 0.9, 0.9], 2, deterministic=False)
    assert schedule(Curious(), [0.9, 0.9, 0.9], 2, deterministic=True) == 2


def test_the_joint_check_catches_a_leak():
    """A chi-square that could not fail."""
    pair = larger(5)
    statistic, limit = chi_square(run(pair, "auto", leaking, seed=4, rounds=DRAWS), pair)
    assert statistic > 2 * limit
