"""What rounds add up to, against counts by hand and brute force; the threshold sweep likewise."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.pairs import traces

from dspark_mlx.benchmark.turns import decode
from dspark_mlx.evaluation.counts import count, ended_inside
from dspark_mlx.evaluation.sweep import Block, SweepPoint, judge, sweep, visited
from dspark_mlx.schedulers.threshold import ThresholdScheduler
from dspark_mlx.types import Round

STOP = {9}
HAND_MADE = [
    Round((5,), prefill=True),
    Round((1, 2, 3), drafted=3, scheduled=3, accepted=2, confidence=(0.9, 0.8, 0.7)),
    Round((4,), drafted=3, scheduled=3, accepted=0, confidence=(0.5, 0.5, 0.5)),
    Round((4,)),
    Round((1, 2, 3, 4), drafted=3, scheduled=3, accepted=3, confidence=(0.9, 0.9, 0.9)),
    Round((4, 5), drafted=3, scheduled=1, accepted=1, confidence=(0.9, 0.2, 0.9)),
    Round((7, 9), drafted=3, scheduled=3, accepted=2, confidence=(0.9, 0.9, 0.9)),
]


def test_counts_by_hand():
    """The prefill counted, plain steps not; positions behind an accepted stop token proposed."""
    counts = count(HAND_MADE, 3, STOP)
    assert (counts.rounds, counts.tokens, counts.drafted) == (6, 13, 15)
    # The last round verified three, but its second ended the text.
    assert (counts.verified, counts.accepted) == (12, 8)
    assert counts.verified_at == (5, 4, 3)
    assert counts.reached_at == (5, 3, 2)
    assert counts.accepted_at == (4, 3, 1)
    assert counts.tau == pytest.approx(13 / 6)
    assert counts.verify_rate == pytest.approx(13 / 18)
    assert counts.survival == pytest.approx((4 / 5, 3 / 4, 1 / 3))
    assert counts.conditional == pytest.approx((4 / 5, 1, 1 / 2))


def test_a_stop_token_that_is_no_draft_cuts_nothing():
    """A correction that ends the text taken for an accepted draft."""
    counts = count([Round((1, 9), drafted=3, scheduled=3, accepted=1)], 3, STOP)
    assert counts.verified_at == (1, 1, 1) and counts.accepted_at == (1, 0, 0)


def test_nothing_counted_is_no_number():
    """A division by zero, or a position that nothing verified shown as 0."""
    counts = count([Round((5,), prefill=True)], 2, STOP)
    assert (counts.tau, counts.verify_rate, counts.survival) == (0.0, 0.0, (None, None))


def test_acceptance_by_position_equals_brute_force():
    """A position off by one, or a condition on the wrong prefix."""
    rng, gamma, rounds = np.random.default_rng(0), 5, []
    for _ in range(300):
        scheduled = int(rng.integers(0, gamma + 1))
        accepted = int(rng.integers(0, scheduled + 1))
        tokens = (0,) * (accepted + 1)
        rounds.append(Round(tokens, drafted=gamma, scheduled=scheduled, accepted=accepted))
    counts = count(rounds, gamma, STOP)
    for k in range(gamma):
        verified = [r for r in rounds if r.scheduled >= k + 1]
        reached = [r for r in verified if r.accepted >= k]
        yes = [r for r in verified if r.accepted >= k + 1]
        assert counts.survival[k] == len(yes) / len(verified)
        assert counts.conditional[k] == len(yes) / len(reached)


@pytest.mark.parametrize("stops", [(), (219,), (340,)], ids=["cut", "bonus ends", "draft ends"])
def test_the_sweep_is_direct_scheduling(pair, stops):
    """A walk that skips or repeats positions, admits by another slot's confidence, or leaves out a
    text's last rounds.
    """
    decoder = pair("vanilla")
    prompts = [trace["prompt_ids"] for trace in traces("vanilla")[1:3]]
    texts = []
    for prompt in prompts:
        run = decode(decoder, prompt, 32, {}, stops, whole=True)
        texts.append(judge(decoder, prompt, [*run.tokens, *run.beyond], stops, 32))
    for found in sweep(texts, [0.0, 0.44, 1.0]):
        expect_direct(found, decoder, prompts, stops)


def expect_direct(found: SweepPoint, decoder, prompts, stops) -> None:
    """A point of the sweep is what rounds under its threshold add up to."""
    again = decoder.with_scheduler(ThresholdScheduler(found.threshold))
    runs = [decode(again, prompt, 32, {}, stops, whole=True) for prompt in prompts]
    direct = [done for run in runs for done in run.rounds[1:]]
    expected = count(direct, decoder.engine.drafter.config.gamma, stops)
    if not found.threshold:
        assert any(ended_inside(done, stops) for done in direct) == (stops == (340,))
    assert found.tau == pytest.approx(expected.tau)
    assert found.verified == pytest.approx(expected.verified / expected.rounds)
    if expected.verified:
        assert found.acceptance_rate == pytest.approx(expected.accepted / expected.verified)
    else:
        assert found.acceptance_rate is None


def test_thresholds_of_the_sweep_matter(pair):
    """The test above passing because no threshold cuts anything."""
    decoder = pair("vanilla")
    prompt = traces("vanilla")[0]["prompt_ids"]
    text = decode(decoder, prompt, 40, {}, (), whole=True).tokens
    points = sweep([judge(decoder, prompt, text)], [0.0, 0.44, 0.5, 1.0])
    assert [point.verified for point in points] == sorted(
        {point.verified for point in points}, reverse=True
    )
    assert points[0].verified == 5 and points[-1].verified == 0 and points[-1].tau == 1


def test_a_text_shorter_than_a_block_is_not_judged(pair):
    """A block judged by tokens that do not exist."""
    decoder = pair("vanilla")
    assert judge(decoder, [3, 4], [5, 6, 7, 8, 9]) == ()
    assert sweep([()]) == ()


def test_only_whole_blocks_are_visited():
    """Confidences judged on blocks chosen by them, or labels behind the end of a text."""
    assert visited(HAND_MADE, STOP) == []
    whole = [done for done in HAND_MADE if done.scheduled in (0, 3)]
    assert visited(whole, STOP) == [
        Block((0.9, 0.8, 0.7), 2),
        Block((0.5, 0.5, 0.5), 0),
        Block((0.9, 0.9, 0.9), 3),
    ]
