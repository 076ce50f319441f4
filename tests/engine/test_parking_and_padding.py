"""Profiles in the real loop: parked steps and padded verify forwards change no token."""

from __future__ import annotations

import itertools

import mlx.core as mx
import pytest
from helpers.hand_made import hand_made_profile
from helpers.pairs import tokens_of, traces
from helpers.tiny_models import tiny
from helpers.toys import toy_pair

from dspark_mlx.calibration.sts import identity
from dspark_mlx.engine.rounds import rounds
from dspark_mlx.engine.statistics import Tally
from dspark_mlx.sampling import greedy
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers.make import make_scheduler
from dspark_mlx.targets.tap import Target
from dspark_mlx.terminal.draft_painter import explained, statistics_line

# Seven rows cost more than eight, one more than two: nearly every width is run padded.
JAGGED = hand_made_profile((12, 11, 20, 19, 19, 18, 17, 16, 15, 14, 30), draft=1, plain=11)
USELESS = hand_made_profile(range(10, 98, 8), draft=5, plain=10)
HOPELESS = hand_made_profile(range(10, 120, 10), draft=50, plain=10)


def run(decoder, scheduler: str, profile, prompt, tokens: int = 64, **options):
    gamma = decoder.engine.drafter.config.gamma
    made = make_scheduler(scheduler, profile, identity(gamma))
    return list(
        decoder.with_scheduler(made, profile).rounds(prompt, tokens, stop_tokens=[1], **options)
    )


@pytest.mark.parametrize("scheduler", ["full", "threshold:0.5", "prefix", "lagged", "auto"])
@pytest.mark.parametrize("profile", [JAGGED, USELESS, HOPELESS], ids=["padded", "parked", "plain"])
def test_profiles_change_no_token(pair, scheduler, profile):
    """Padding that is committed, a cache that keeps it, an anchor lost between plain steps."""
    decoder = pair("vanilla")
    trace = traces("vanilla")[0]
    prompt, output = trace["prompt_ids"], trace["output_ids"]
    rounds = run(decoder, scheduler, profile, prompt, 40)
    assert prompt + tokens_of(rounds) == output[: len(prompt) + 40]
    assert all(done.scheduled <= 5 for done in rounds if done.proposer == "drafter")


def test_rows_are_padded_to_the_cheapest_width(pair):
    """A forward that runs the width it wanted at a higher cost."""
    decoder = pair("vanilla")
    widths, model = [], decoder.engine.target.model
    original = type(model)
    spy = type("Spy", (original,), {"__call__": _spying(original, widths)})
    model.__class__ = spy
    try:
        run(decoder, "fixed:2", JAGGED, traces("vanilla")[0]["prompt_ids"])
    finally:
        model.__class__ = original
    # Three rows are wanted and ten are cheapest; the request's last forwards have less to do.
    # The prompt's last token runs alone; before it the memory that a request needs was measured.
    of_rounds = widths[widths.index(1) + 1 : -3]
    assert of_rounds.count(10) == len(of_rounds) > 5


def _spying(original, widths):
    def call(self, inputs, *args, **kwargs):
        widths.append(inputs.shape[1])
        return original.__call__(self, inputs, *args, **kwargs)

    return call


def test_a_hopeless_device_decodes_plainly(pair):
    """A probe where nothing could pay."""
    rounds = run(pair("vanilla"), "auto", HOPELESS, traces("vanilla")[0]["prompt_ids"])
    assert not any(done.drafted for done in rounds) and len(rounds) > 30
    parked = [done.decision for done in rounds if not done.prefill]
    assert all("no accepted length could pay" in each.reason for each in parked[:-1])


@pytest.mark.parametrize("tokens", [40, 41, 47])
def test_steps_that_start_two_forwards_or_none_are_not_steady(pair, tokens):
    """Ends of requests in the middle of a stretch, whose last step takes no time at all."""
    rounds = run(pair("vanilla"), "auto", HOPELESS, traces("vanilla")[0]["prompt_ids"], tokens)
    steady = [done.steady for done in rounds if not done.prefill]
    assert len(steady) == tokens - 1 and not steady[0] and not steady[-1]
    # The policy is asked again after every 32 steps, so that the next one is not known before.
    assert [i for i, each in enumerate(steady) if not each][1:-1] in ([31], [31, 32])


def test_rounds_say_why(pair):
    """A decision that is another round's; statistics that count none of them."""
    decoder, prompt = pair("vanilla"), traces("vanilla")[0]["prompt_ids"]
    rounds = run(decoder, "auto", JAGGED, prompt, copies=False)
    tally = Tally(len(prompt))
    for number, done in enumerate(rounds):
        tally.add(done)
        if done.drafted:
            assert done.proposer == "drafter" and done.decision.survival
            predicted = done.decision.milliseconds[done.scheduled]
            assert done.decision.seconds * 1e3 == pytest.approx(predicted)
            assert f"{done.scheduled} of 5 verified" in explained(done, number)
    found = tally.statistics()
    assert found.blocks_by == {"drafter": found.blocks} and found.predicted_seconds > 0
    assert found.taken_seconds <= sum(done.seconds for done in rounds)
    assert f"{found.blocks} drafter, {found.rounds - found.blocks} plain" in statistics_line(found)
    assert rounds[0].decision is None


def test_the_context_is_complete_after_parking(pair):
    """Features of plain steps that never reach the drafter: a worse draft after every pause."""
    decoder, prompt = pair("vanilla"), traces("vanilla")[0]["prompt_ids"]
    full = list(decoder.rounds(prompt, 48, stop_tokens=[1]))
    tokens = tokens_of(full)

    class Alternating:
        name, needs_confidence, reads_confidence = "alternating", False, False
        asked = 0

        def start(self, gamma, temperature):
            return self

        def park(self, context, limit):
            self.asked += 1
            return 3 if self.asked % 2 else 0

        def admit(self, slot, seen):
            return True

        def learn(self, done): ...

    mixed = list(decoder.with_scheduler(Alternating()).rounds(prompt, 48, stop_tokens=[1]))
    assert tokens_of(mixed) == tokens
    # Wherever both drafted from the same position, they drafted and accepted the same.
    by_position = {}
    position = 0
    for done in full:
        by_position[position] = done
        position += len(done.tokens)
    position, shared = 0, 0
    for done in mixed:
        other = by_position.get(position)
        if other and done.drafted and other.drafted and other.scheduled == done.scheduled:
            assert done.confidence == pytest.approx(other.confidence, abs=1e-5)
            assert done.accepted == other.accepted
            shared += 1
        position += len(done.tokens)
    assert shared >= 3


def test_what_a_request_ends_with_is_not_rolled_back(pair):
    """A recurrent state computed anew for a request that has ended."""
    decoder, trace = pair("vanilla"), traces("vanilla")[0]
    rounds = run(decoder, "full", None, trace["prompt_ids"])
    blocks = [done for done in rounds if done.drafted]
    assert len(blocks) > 2 and rounds[-1] is blocks[-1]
    assert [done.rollback_seconds > 0 for done in blocks] == [True] * (len(blocks) - 1) + [False]


@pytest.mark.parametrize("method", ["vanilla", "eagle3", "peagle"])
def test_features_of_plain_steps_do_not_wait_for_ever(method, monkeypatch):
    """A few arrays more for every token of a text that is never drafted."""
    target = Target(tiny("llama"), (-1, 0), "llama")
    scheduler = make_scheduler("auto", HOPELESS, identity(3))
    engine, contexts, made = toy_pair(target, scheduler, method), [], []
    new = engine.drafter.new_context
    monkeypatch.setattr(
        engine.drafter, "new_context", lambda *about: contexts.append(new(*about)) or contexts[-1]
    )
    for most in (1000, 8):
        monkeypatch.setattr("dspark_mlx.drafters.contexts._MAX_PENDING", most)
        sampler, waiting = make_sampler(Sampling(), target.vocab_size), 0
        request = rounds(engine, [3, 5, 8], max_tokens=40, stop_tokens=(), sampler=sampler)
        for done in itertools.islice(request, 33):
            assert not done.drafted
            waiting = max(waiting, len(contexts[-1].pending))
        assert waiting <= most + 1 and (most < 1000 or waiting > 30)
        draft = engine.drafter.draft(contexts[-1], mx.array(done.tokens[-1:]), greedy)
        made.append(draft.tokens.tolist())
        request.close()
    assert made[0] == made[1]
    target.close()
