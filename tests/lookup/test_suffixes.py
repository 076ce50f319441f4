"""The suffix index against a search through the whole text."""

from __future__ import annotations

import numpy as np
import pytest

from dspark_mlx.lookup.suffixes import SuffixIndex


def longest(text: list[int]) -> int:
    """Length of the longest end of a text that also ends earlier in it, by trying all of them."""
    size = len(text)
    for length in range(size - 1, 0, -1):
        end = text[size - length :]
        if any(text[place - length : place] == end for place in range(length, size)):
            return length
    return 0


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 20])
@pytest.mark.parametrize("piece", [1, 3])
def test_every_match_is_the_longest(vocabulary, piece):
    """A state that was not split, a link to the wrong state, a place that is another text's."""
    rng = np.random.default_rng(vocabulary)
    for _ in range(20):
        index, text = SuffixIndex(), list[int]()
        for _ in range(60 // piece):
            new = rng.integers(0, vocabulary, piece).tolist()
            text += new
            index.extend(new)
            match, source = index.match, index.source
            assert match == longest(text)
            assert match == 0 or source < len(text)
            assert text[source - match : source] == text[len(text) - match :] or match == 0
            known = text[source:][:8]
            assert index.continuation(8)[: len(known)] == (known if match else [])


def test_a_repetition_goes_on():
    """A copy that ends where the text does."""
    index = SuffixIndex()
    index.extend([7, 1, 2, 3, 1, 2, 3])
    assert index.match == 3 and index.continuation(7) == [1, 2, 3, 1, 2, 3, 1]


def test_the_newest_of_equal_matches_is_copied():
    """An edit that was made once and is forgotten the next time."""
    index = SuffixIndex()
    for after in (5, 6):
        index.extend([1, 2])
        index.extend([after, 2 + after])
    index.extend([1, 2])
    assert index.match == 2 and index.continuation(1) == [6]


def test_nothing_goes_on_over_a_wall():
    """The end of one reference before the begin of another one, taken for a sentence."""
    index = SuffixIndex()
    for text in ([1, 2, 3], [4, 5, 3]):
        index.extend(text)
        index.wall()
    index.extend([1, 2])
    assert index.continuation(8) == [3]
    index.extend([3])
    assert index.match == 3 and index.continuation(8) == []
    index.extend([4])
    assert index.match == 1 and index.continuation(2) == [5, 3]


@pytest.mark.parametrize("vocabulary", [2, 1000])
def test_the_index_grows_linearly(vocabulary):
    """Matches by all pairs, which a prompt of 100,000 tokens shows."""
    size = 5000
    text = np.random.default_rng(0).integers(0, vocabulary, size).tolist()
    index = SuffixIndex()
    index.extend(text)
    assert size < len(index._next) <= 2 * size
    assert sum(map(len, index._next)) <= 3 * size
