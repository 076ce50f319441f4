"""The drafter alone against the PyTorch reference's numbers, three rounds a golden drafter."""

from __future__ import annotations

from itertools import pairwise

import mlx.core as mx
import pytest
from pairs import DRAFTERS, golden

from dspark_mlx.sampling import greedy

ROUNDS = range(3)
TOLERANCE = 1e-4


def relative(found: mx.array, expected: mx.array) -> float:
    assert found.shape == expected.shape
    return (mx.abs(found - expected).max() / mx.abs(expected).max()).item()


def tokens_of(taps):
    """Of the features' rows; a DSpark drafter does not read them."""
    return mx.zeros((taps[0].shape[0],), dtype=mx.int32)


def in_one_piece(drafter, context, taps):
    drafter.extend(context, taps, tokens_of(taps))


def in_pieces(drafter, context, taps):
    rows = taps[0].shape[0]
    cuts = [0, 1, rows // 3, rows // 2, rows]
    for i, (a, b) in enumerate(pairwise(cuts)):
        if a < b:
            piece = [tap[a:b] for tap in taps]
            drafter.extend(context, piece, tokens_of(piece))
        if i % 2 == 0:
            drafter.flush(context)


def row_by_row(drafter, context, taps):
    for i in range(taps[0].shape[0]):
        row = [tap[i : i + 1] for tap in taps]
        drafter.extend(context, row, tokens_of(row))


FEEDS = {"one piece": in_one_piece, "pieces": in_pieces, "row by row": row_by_row}


class Case:
    """One golden round: the context's taps, the anchor, and what the reference drafts."""

    def __init__(self, name: str, index: int, width: int) -> None:
        file = mx.load(str(golden(name) / "drafter_golden.safetensors"))
        self.values = {
            key.split(".")[1]: value[0]
            for key, value in file.items()
            if key.startswith(f"round{index}.")
        }
        rows = file["context_features"][0, : self.values["start"].item()]
        self.taps = [rows[:, i : i + width] for i in range(0, rows.shape[1], width)]
        self.anchor = self.values["draft_input_ids"][:1].astype(mx.int32)


def check(draft, values) -> None:
    assert draft.tokens.tolist() == values["tokens"].tolist()
    assert relative(draft.hidden, values["hidden"]) < TOLERANCE
    assert relative(draft.base_logits, values["base_logits"]) < TOLERANCE
    assert relative(draft.logits, values["logits"]) < TOLERANCE
    if "confidence_logits" in values:
        assert relative(draft.confidence_logits, values["confidence_logits"]) < TOLERANCE
    else:
        assert draft.confidence_logits is None


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
        check(drafter.draft(context, case.anchor, greedy), case.values)


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
        check(drafter.draft(context, case.anchor, greedy), case.values)
        assert context.length == there


def test_drafting_twice_gives_the_same_block(pair):
    """A draft that changes its own context."""
    drafter = pair("rnn").engine.drafter
    case = Case("rnn", 1, drafter.config.target_hidden_size)
    context = drafter.new_context()
    drafter.extend(context, case.taps, tokens_of(case.taps))
    first = drafter.draft(context, case.anchor, greedy)
    second = drafter.draft(context, case.anchor, greedy)
    assert relative(second.logits, first.logits) < 1e-6


def test_a_pick_of_other_tokens_feeds_the_sequential_head(pair):
    """Corrected logits that follow the argmax instead of the token that was picked."""
    drafter = pair("vanilla").engine.drafter
    case = Case("vanilla", 0, drafter.config.target_hidden_size)

    def block(pick):
        context = drafter.new_context()
        drafter.extend(context, case.taps, tokens_of(case.taps))
        return drafter.draft(context, case.anchor, pick)

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
