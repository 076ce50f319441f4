"""DSpine's silent traps, each on a fixture that can tell it."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import pytest
from helpers.packaged_case import Case, close

from dspark_mlx.drafters.dspine.drafter import DSpineDrafter
from dspark_mlx.drafters.dspine.injection import Injection


@pytest.fixture
def case(tmp_path):
    return Case("dspine", tmp_path)


def _one_after_the_other(monkeypatch):
    """Rows that hear from rows which have heard already."""

    def along(self, layer, x, first):
        rows, before = [x[:, :1]], first
        for i in range(1, x.shape[1]):
            row = x[:, i : i + 1]
            rows.append(self.after(layer, row, self.of_rows(layer, row), before))
            before = self.of_rows(layer, rows[-1])
        return mx.concatenate(rows, axis=1)

    monkeypatch.setattr(Injection, "along", along)


def _own_codes(monkeypatch):
    """Codes of rows that are not as long as those of tokens."""
    honest = Injection.of_rows
    monkeypatch.setattr(Injection, "of_rows", lambda self, *a: honest(self, *a) / 2)


def _unscaled(monkeypatch):
    """Messages as they are, whatever a row's size."""
    honest = Injection.after

    def after(self, layer, x, codes, before):
        delta = honest(self, layer, x, codes, before) - x
        return x + delta / x.square().mean(axis=-1, keepdims=True).sqrt()

    monkeypatch.setattr(Injection, "after", after)


def _read_once(monkeypatch):
    """Tokens by the slots' own logits."""

    def fill(self, block, readout, anchors, base, hidden):
        for slot in range(base.shape[1]):
            block.add(base[:, slot])

    monkeypatch.setattr(DSpineDrafter, "fill", fill)


def _always_the_anchor(monkeypatch):
    honest = DSpineDrafter.fill

    def fill(self, block, readout, anchors, base, hidden):
        for i in range(base.shape[1]):
            one = slice(i, i + 1)
            honest(self, block, readout, anchors, base[:, one], hidden[:, one])

    monkeypatch.setattr(DSpineDrafter, "fill", fill)


TRAPS = {
    "rows one after the other": _one_after_the_other,
    "shorter codes": _own_codes,
    "messages unscaled": _unscaled,
    "slots read once": _read_once,
    "the anchor before every slot": _always_the_anchor,
}


@pytest.mark.parametrize("trap", TRAPS)
def test_every_trap_shows(case, monkeypatch, trap):
    """A wrong reading that raises nothing and only accepts less."""
    config = case.convert()
    assert close(case.draft(config).logits, case.expected().logits)
    TRAPS[trap](monkeypatch)
    assert not close(case.draft(config).logits, case.expected().logits)


def test_a_block_is_causal(case):
    """DFlash's mask, whose rows see later ones."""
    config = case.convert()
    assert config.causal == (True, True)
    drafter = case.drafter(config)
    drafter._backbone._kinds = [replace(kind, causal=False) for kind in drafter._backbone._kinds]
    context = drafter.new_context()
    taps = [mx.array(case.taps[i].astype("float32")) for i in config.taps]
    drafter.extend(context, taps, mx.zeros((taps[0].shape[0],), dtype=mx.int32))
    logits = []

    def pick(row, ids, drawn):
        logits.append(row)
        return mx.argmax(row, axis=-1).astype(mx.int32), None

    drafter.draft(context, mx.array([9], dtype=mx.int32), pick)
    assert not close(mx.concatenate(logits), case.expected().logits)


def test_few_logits_are_those_of_the_whole_matrix(case):
    """Rows of the output matrix by column in place of token, or a head without rows to take."""
    config = case.convert()
    drafter = case.drafter(config)
    readout = drafter._output.full
    hidden, columns = mx.random.normal((2, config.hidden_size)), mx.array([[3, 9], [60, 0]])
    whole = replace(readout, matrix=None)
    assert readout.matrix is not None
    assert close(readout.logits_of(columns, hidden), whole.logits_of(columns, hidden))
    ids = mx.array([5, 7, 63])
    cut = replace(readout, ids=ids, logits=lambda x: readout.logits(x)[:, ids])
    few = mx.array([[2, 0], [1, 1]])
    expected = replace(cut, matrix=None).logits_of(few, hidden)
    assert close(cut.logits_of(few, hidden), expected)
