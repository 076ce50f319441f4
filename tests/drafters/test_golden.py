"""The drafter alone against the PyTorch reference's numbers, three rounds a golden drafter."""

from __future__ import annotations

import mlx.core as mx
import pytest
from helpers.golden_rounds import FEEDS, ROUNDS, Case, check, relative, tokens_of
from helpers.observed import observed
from helpers.pairs import DRAFTERS

from dspark_mlx.sampling import greedy


@pytest.mark.parametrize("feed", FEEDS.values(), ids=FEEDS)
@pytest.mark.parametrize("name", DRAFTERS)
def test_rounds_equal_the_reference(pair, name, feed):
    """A wrong rope offset, tap order, norm, head formula or mask row; a context that depends on
    how it arrived (pending features lost or doubled by flush)."""
    drafter = pair(name).engine.drafter
    for index in ROUNDS:
        case = Case(name, index, drafter.config.target_hidden_size)
        context = drafter.new_context()
        feed(drafter, context, case.taps)
        assert context.length == case.taps[0].shape[0]
        check(observed(drafter, context, case.anchor), case.values)


def test_context_grows_over_rounds_of_one_request(pair):
    """The block's rows staying in the drafter's K/V after a draft, which only the next round of
    the same context shows."""
    name = "vanilla"
    drafter = pair(name).engine.drafter
    cases = [Case(name, index, drafter.config.target_hidden_size) for index in ROUNDS]
    cases.sort(key=lambda case: case.taps[0].shape[0])
    context, there = drafter.new_context(), 0
    for case in cases:
        new = [tap[there:] for tap in case.taps]
        drafter.extend(context, new, tokens_of(new))
        there = case.taps[0].shape[0]
        check(observed(drafter, context, case.anchor), case.values)
        assert context.length == there


def test_drafting_twice_gives_the_same_block(pair):
    """A draft that changes its own context."""
    drafter = pair("rnn").engine.drafter
    case = Case("rnn", 1, drafter.config.target_hidden_size)
    context = drafter.new_context()
    drafter.extend(context, case.taps, tokens_of(case.taps))
    first = observed(drafter, context, case.anchor)
    second = observed(drafter, context, case.anchor)
    assert relative(second.logits, first.logits) < 1e-6


def test_a_pick_of_other_tokens_feeds_the_sequential_head(pair):
    """Corrected logits that follow the argmax instead of the token that was picked."""
    drafter = pair("vanilla").engine.drafter
    case = Case("vanilla", 0, drafter.config.target_hidden_size)

    def block(pick):
        context = drafter.new_context()
        drafter.extend(context, case.taps, tokens_of(case.taps))
        return observed(drafter, context, case.anchor, pick)

    other = block(lambda *_: (mx.full((1,), 7, dtype=mx.int32), None))
    best = block(greedy)
    assert other.tokens.tolist() == [7] * drafter.config.gamma
    assert relative(other.logits[:1], best.logits[:1]) < 1e-6
    assert relative(other.logits[1:], best.logits[1:]) > 1e-3
    assert relative(other.base_logits, best.base_logits) < 1e-6


def test_goldens_cover_the_odd_conventions(pair):
    """A fixture that stopped covering the embedding tap or the narrow confidence head."""
    assert pair("embedding_tap").engine.drafter.config.taps[0] == -1


def test_the_narrow_confidence_head_is_covered(pair):
    """As above, for a confidence head that reads the hidden state alone."""
    assert pair("conf_hidden_only").engine.drafter.config.confidence == "hidden"
