"""What a request learns of its copies."""

from __future__ import annotations

import pytest

from dspark_mlx.lookup.chances import CopyChances
from dspark_mlx.lookup.lookup import MAX_COPY, Lookup


def test_longer_matches_are_surer():
    """A chance that falls with the match; survival that is not a product."""
    chances = CopyChances()
    firsts = [chances.survival(match, 1)[0] for match in range(1, 60)]
    assert firsts == sorted(firsts) and firsts[0] < 0.3 and firsts[-1] > 0.9
    survival = chances.survival(3, 4)
    parts = [chances.survival(match, 1)[0] for match in range(3, 7)]
    assert survival[3] == pytest.approx(parts[0] * parts[1] * parts[2] * parts[3])


def test_what_is_hardly_likely_is_not_computed():
    """Time spent in every round on 32 tokens after a match that means nothing."""
    chances = CopyChances()
    assert len(chances.survival(40, 32)) == 32
    short = chances.survival(1, 32)
    assert len(short) < 32 and short[-1] >= 0.01
    for _ in range(300):
        chances.learn(1, [5], [6])
    assert len(chances.survival(1, 32)) == 1


def test_what_the_target_said_is_learned():
    """Chances that stay as they were; a kind of match that pays for another one's failures."""
    chances = CopyChances()
    long, short = chances.survival(50, 1), chances.survival(2, 1)
    for _ in range(20):
        chances.learn(2, [5, 6], [7, 6])
    assert chances.survival(2, 1)[0] < 0.1 < short[0] and chances.survival(50, 1) == long
    for _ in range(200):
        chances.learn(2, [5], [5])
    assert chances.survival(2, 1)[0] > 0.85


def test_only_tokens_before_the_first_wrong_one_count():
    """What follows a rejection, which says nothing of a copy that was right until then."""
    chances, other = CopyChances(), CopyChances()
    chances.learn(3, [1, 2, 3], [1, 9, 3])
    other.learn(3, [1, 2], [1, 9])
    assert chances.survival(1, 40) == other.survival(1, 40)


def test_a_lookup_learns_from_rounds_that_did_not_copy():
    """A request that never finds out that copies would be right, since it never copies."""
    lookup = Lookup()
    lookup.read(list(range(100)))
    lookup.commit([0])
    before = lookup.survival()
    assert lookup.tokens == list(range(1, 1 + MAX_COPY)) and before
    for token in range(1, 20):
        lookup.commit([token])
    assert lookup.survival()[0] > before[0]


def test_references_are_read_and_kept_apart():
    lookup = Lookup([[1, 2, 3], [4, 5]])
    lookup.read([9, 1])
    lookup.commit([2])
    assert lookup.tokens == [3]
    lookup.commit([4])
    assert lookup.tokens == [5]
