"""Batches of texts: anchors, supervised slots, epochs, and that a step's number gives its batch."""

from __future__ import annotations

import numpy as np
import pytest

from dspark_mlx.errors import InputError
from dspark_mlx.train.data.corpus import Corpus
from dspark_mlx.train.step.batches import (
    Batches,
    BatchSettings,
    anchor_candidates,
    split,
    supervised_slots,
)

GAMMA = 4
SETTINGS = BatchSettings(tokens=64, max_length=24, anchors_every=4, bucket=8, seed=3)


def corpus(count=23, seed=0):
    """Texts of random lengths whose first token is their number, with random answers."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(6, 30, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = rng.integers(100, 200, offsets[-1])
    tokens[offsets[:-1]] = np.arange(count)
    answer = rng.random(offsets[-1]) < 0.7
    for start in offsets[:-1]:
        answer[start : start + 4] = False, False, True, True
    return Corpus(tokens.astype(np.uint16), answer, offsets)


def epochs(batches, first, last):
    """Numbers of the texts of every batch, and the batches."""
    found = [batches[i] for i in range(first * batches.per_epoch, last * batches.per_epoch)]
    return [np.array(batch.tokens)[:, 0].tolist() for batch in found], found


def test_anchors_are_followed_by_an_answer():
    """An anchor whose next token is no answer, or the last token of a text."""
    rng = np.random.default_rng(1)
    for _ in range(50):
        answer = rng.random(rng.integers(1, 12)) < 0.6
        expected = [i for i in range(len(answer) - 1) if answer[i] and answer[i + 1]]
        assert anchor_candidates(answer).tolist() == expected


def test_supervised_slots_are_the_answers_beginning():
    """Slots behind a user's turn, behind the text's end, or shifted by one."""
    rng = np.random.default_rng(2)
    for _ in range(50):
        answer = rng.random(9) < 0.7
        anchors = rng.integers(0, 9, 5)
        found = supervised_slots(answer, anchors, GAMMA)
        for anchor, row in zip(anchors, found, strict=True):
            count = 0
            while anchor + count + 1 < 9 and answer[anchor + count + 1]:
                count += 1
            assert row.tolist() == [k < count for k in range(GAMMA)]


def test_a_batch_is_its_texts():
    """Tokens of another text, anchors outside of the answer or drawn twice, more than the share."""
    texts = corpus()
    batches = Batches(texts, range(23), GAMMA, SETTINGS)
    for numbers, batch in zip(*epochs(batches, 0, 2), strict=True):
        tokens, anchors, supervised = map(np.array, (batch.tokens, batch.anchors, batch.supervised))
        length = tokens.shape[1]
        assert length % 8 == 0 and length <= 24 and tokens.shape[0] == 64 // length
        assert anchors.shape[1] == length // 4
        for row, number in enumerate(numbers):
            text = texts[number].tokens[:length]
            assert tokens[row].tolist() == text.tolist() + [0] * (length - len(text))
            answer = texts[number].answer[:length]
            used = anchors[row][supervised[row].any(axis=1)]
            candidates = anchor_candidates(answer)
            assert len(used) == min(len(candidates), length // 4)
            assert np.unique(used).size == used.size and np.isin(used, candidates).all()
            expected = supervised_slots(answer, used, GAMMA)
            np.testing.assert_array_equal(supervised[row, : len(used)], expected)


def test_every_text_comes_once_an_epoch():
    """Texts left out or seen more often than others; but for those that fill a last batch."""
    batches = Batches(corpus(), range(23), GAMMA, SETTINGS)
    assert batches.texts == 23
    for epoch in range(3):
        numbers, found = epochs(batches, epoch, epoch + 1)
        assert {n for members in numbers for n in members} == set(range(23))
        for length in {batch.tokens.shape[1] for batch in found}:
            seen = [
                n
                for members, batch in zip(numbers, found, strict=True)
                for n in members
                if batch.tokens.shape[1] == length
            ]
            rows = 64 // length
            assert len(seen) - len(set(seen)) == -len(set(seen)) % rows
    first, second = (epochs(batches, i, i + 1)[0] for i in (0, 1))
    assert first != second


def test_a_step_gives_its_batch_whatever_was_asked_before():
    """A run that goes on with other batches than the one that was not stopped."""
    straight = Batches(corpus(), range(23), GAMMA, SETTINGS)
    other = Batches(corpus(), range(23), GAMMA, SETTINGS)
    count = 2 * straight.per_epoch
    expected = [straight[i] for i in range(count)]
    for i in np.random.default_rng(0).permutation(count).tolist():
        for name in ("tokens", "anchors", "supervised"):
            a, b = getattr(expected[i], name), getattr(other[i], name)
            np.testing.assert_array_equal(np.array(a), np.array(b))


def test_what_is_held_out_is_not_learnt_from():
    """A judgement on texts that were learnt."""
    learnt, held_out = split(23, 5, seed=4)
    assert len(held_out) == 5 and sorted(learnt + held_out) == list(range(23))
    assert split(23, 5, seed=4) == (learnt, held_out) != split(23, 5, seed=5)
    numbers, _ = epochs(Batches(corpus(), learnt, GAMMA, SETTINGS), 0, 3)
    assert {n for members in numbers for n in members} == set(learnt)


def test_texts_without_an_answer_are_refused():
    """Steps on nothing."""
    texts = corpus()
    silent = Corpus(texts.tokens, np.zeros_like(texts.answer), texts.offsets)
    with pytest.raises(InputError, match="two answer tokens in a row"):
        Batches(silent, range(23), GAMMA, SETTINGS)


@pytest.mark.parametrize("name", ("tokens", "max_length", "anchors_every", "bucket", "seed"))
def test_numbers_that_cannot_be_meant(name):
    """An endless loop or an empty batch."""
    with pytest.raises(InputError, match=f"^{name}"):
        BatchSettings(**{name: -1}).check()
