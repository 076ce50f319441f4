"""How hot filters leave a text, and what a request's prior and confidences are chosen by."""

from __future__ import annotations

import pytest
from helpers.hand_made import hand_made_profile
from helpers.pairs import traces

from dspark_mlx.calibration.by_temperature import Calibrations
from dspark_mlx.calibration.sts import identity
from dspark_mlx.sampling.effective_temperature import effective_temperature
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers.auto import AutoScheduler
from dspark_mlx.schedulers.memory import PairMemory


@pytest.mark.parametrize(
    ("filters", "at_1", "at_07"),
    [
        # By the mean surprise of SmolLM2-135M-Instruct's next token.
        ({"top_p": 0.95}, 0.91, 0.69),
        ({"top_p": 0.9}, 0.85, 0.67),
        ({"top_p": 0.8}, 0.75, 0.62),
        ({"top_k": 10}, 0.80, 0.62),
        ({"top_k": 40}, 0.89, 0.67),
        ({"min_p": 0.05}, 0.73, 0.61),
        ({"min_p": 0.1}, 0.65, 0.56),
        ({"top_p": 0.95, "top_k": 40}, 0.85, None),
        ({"top_p": 0.9, "min_p": 0.05}, 0.73, None),
    ],
)
def test_filters_cool_as_measured(filters, at_1, at_07):
    """A filtered request believed to be as hot as an unfiltered one, or hotter."""
    assert effective_temperature(Sampling(temperature=1.0, **filters)) == pytest.approx(
        at_1, abs=0.06
    )
    if at_07 is not None:
        assert effective_temperature(Sampling(temperature=0.7, **filters)) == pytest.approx(
            at_07, abs=0.06
        )


def test_without_filters_it_is_the_temperature():
    """A request at a fitted temperature that misses its fit by rounding; extremes that overflow."""
    for temperature in (0.0, 1e-4, 0.7, 1.0, 1e4):
        assert effective_temperature(Sampling(temperature=temperature)) == temperature
    assert effective_temperature(Sampling(top_p=0.5, top_k=3)) == 0.0
    for temperature in (1e-4, 1e4):
        assert (
            0
            < effective_temperature(Sampling(temperature=temperature, top_p=1e-9, top_k=1))
            <= temperature
        )


@pytest.mark.parametrize("reproducible", [False, True])
def test_every_rule_tells_it(reproducible):
    sampling = Sampling(temperature=1.0, top_p=0.9, reproducible=reproducible)
    assert make_sampler(sampling, 8).temperature == effective_temperature(sampling) < 1
    assert make_sampler(Sampling(), 8).temperature == 0


def test_a_request_has_the_prior_and_confidences_of_its_heat(pair):
    """Sampled rounds scaled by the temperatures of greedy ones, or scheduled by their prior."""
    decoder, prompt = pair("vanilla"), traces("vanilla")[0]["prompt_ids"]
    gamma = decoder.engine.drafter.config.gamma
    scaled = [
        type(identity(gamma))((t,) * gamma, 1, (0.5,) * gamma, 0.5, ((0.5,) * gamma,))
        for t in (1.0, 4.0)
    ]
    decoder.engine.drafter.calibrations = Calibrations({0.0: scaled[0], 1.0: scaled[1]})
    asked = []

    class Watching(AutoScheduler):
        def start(self, gamma, temperature=0.0):
            asked.append(temperature)
            return super().start(gamma, temperature)

    profile = hand_made_profile((10,) * (gamma + 1), draft=1, plain=10)
    watched = decoder.with_scheduler(
        Watching(PairMemory(profile, decoder.engine.drafter.calibrations))
    )
    confidence = {}
    for temperature, top_k in ((0.0, 0), (1.0, 0), (1.0, 5)):
        # The first slot's log-odds depend on no drafted token.
        settings = {"temperature": temperature, "top_k": top_k, "seed": 0}
        made = watched.rounds(prompt, 24, stop_tokens=(), logit_bias={7: 100.0}, **settings)
        first = next(done for done in made if done.drafted)
        confidence[temperature, top_k] = first.confidence[0]
    cool = effective_temperature(Sampling(temperature=1.0, top_k=5))
    assert asked == [0.0, 1.0, cool]
    odds = {key: value / (1 - value) for key, value in confidence.items()}
    assert odds[1.0, 0] ** 4 == pytest.approx(odds[0.0, 0], rel=1e-3)
    assert odds[1.0, 5] ** (1 + 3 * cool) == pytest.approx(odds[0.0, 0], rel=1e-3)
