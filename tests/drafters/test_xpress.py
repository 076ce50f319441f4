"""XPress' silent traps, each on a fixture that can tell it, and its drafts in a batch."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from helpers.edits import tensors as edit_tensors
from helpers.packaged_case import ANCHOR, TOKENS, Case, close

from dspark_mlx.drafters.batch import Wanted, context_batch
from dspark_mlx.drafters.xpress.drafter import XPressDrafter
from dspark_mlx.drafters.xpress.refiner import Refiner
from dspark_mlx.sampling import greedy


@pytest.fixture
def case(tmp_path):
    return Case("speculators_xpress", tmp_path)


def _same_predecessor(monkeypatch):
    """The anchor as every slot's token before, in place of the one that was chosen."""
    honest = Refiner.vector

    def vector(self, previous, hidden, state):
        if state is None or state.shape[1] == 1:
            self.__dict__["first"] = previous
        return honest(self, self.__dict__["first"], hidden, state)

    monkeypatch.setattr(Refiner, "vector", vector)


def _anchor_before_itself(monkeypatch):
    """The anchor in place of the token before it, which engines without that token take."""
    honest = XPressDrafter.draft

    def draft(self, context, anchor, pick):
        context.newest = anchor
        return honest(self, context, anchor, pick)

    monkeypatch.setattr(XPressDrafter, "draft", draft)


def _rows_alone(monkeypatch):
    """The mean over the rows that are read out, without the anchor's."""
    honest = Refiner.inputs

    def inputs(self, hidden):
        return mx.concatenate([honest(self, hidden)[:1], honest(self, hidden[1:])])

    monkeypatch.setattr(Refiner, "inputs", inputs)


def _changed(change):
    """A refiner of other tensors."""

    def wrong(monkeypatch):
        honest = Refiner.load
        monkeypatch.setattr(Refiner, "load", lambda tensors: change(honest(tensors)))

    return wrong


def _swapped(refiner):
    return replace(refiner, row=refiner.mean, mean=refiner.row)


def _transposed(refiner):
    return replace(refiner, mixing=refiner.mixing.transpose(1, 0, 2))


TRAPS = {
    "the anchor before every slot": _same_predecessor,
    "the anchor before itself": _anchor_before_itself,
    "the mean of the rows read out": _rows_alone,
    "row and mean swapped": _changed(_swapped),
    "the mixing transposed": _changed(_transposed),
    "no mixing": _changed(lambda refiner: replace(refiner, mixing=refiner.mixing * 0)),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_every_trap_shows(case, monkeypatch, trap):
    """A wrong reading that raises nothing and only accepts less."""
    config = case.convert()
    assert close(case.draft(config).logits, case.expected().logits)
    TRAPS[trap](monkeypatch)
    assert not close(case.draft(config).logits, case.expected().logits)


def test_what_stands_above_the_mixings_diagonal_is_not_read(case):
    """The mask is not stored, and the numbers behind it were never trained."""
    whole = case.draft(case.convert())
    edit_tensors(refiner_head__mix_l=mx.tril)(case.source)
    cut = case.draft(case.convert(overwrite=True))
    assert mx.array_equal(whole.logits, cut.logits)


def test_requests_of_a_batch_draft_as_alone(case):
    """The newest token of another request, or of rows that were not committed."""
    drafter = case.drafter(case.convert())
    kept = (13, 5)

    def contexts():
        made = [drafter.new_context() for _ in kept]
        for context, count in zip(made, kept, strict=True):
            taps = [mx.array(case.taps[i].astype(np.float32)) for i in drafter.config.taps]
            drafter.extend(context, taps, TOKENS, count)
        return made

    anchor = mx.array([ANCHOR], dtype=mx.int32)
    alone = [drafter.draft(context, anchor, greedy) for context in contexts()]
    together = context_batch(drafter, contexts()).draft([Wanted(anchor, greedy, False)] * 2)
    for one, other, count in zip(alone, together, kept, strict=True):
        assert other is not None and mx.array_equal(one.logits, other.logits)
        # Rows that were cut off before they came give the same.
        context = drafter.new_context()
        taps = [mx.array(case.taps[i][:count].astype(np.float32)) for i in drafter.config.taps]
        drafter.extend(context, taps, TOKENS[:count])
        assert mx.array_equal(drafter.draft(context, anchor, greedy).logits, one.logits)
