"""Golden rounds of the drafter alone, and the ways to feed it their context."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import mlx.core as mx

from helpers.pairs import golden

ROUNDS = range(3)
TOLERANCE = 1e-4


def relative(found: mx.array, expected: mx.array) -> float:
    assert found.shape == expected.shape
    return float(mx.abs(found - expected).max() / mx.abs(expected).max())


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
        file: Any = mx.load(str(golden(name) / "drafter_golden.safetensors"))
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
