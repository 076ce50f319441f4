"""DFlash 2's silent traps, each on a fixture that can tell it, and its drafts in a batch."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from helpers.edits import tensors
from helpers.packaged_case import ANCHOR, ROWS, Case, close
from helpers.packaged_parts import VOCAB

from dspark_mlx.checkpoint.linear import Matrix
from dspark_mlx.drafters.batch import Wanted, context_batch
from dspark_mlx.drafters.block import BlockBuilder
from dspark_mlx.drafters.convolution import Convolution
from dspark_mlx.drafters.dflash2.selector import Selector
from dspark_mlx.drafters.dspark.backbone import Backbone
from dspark_mlx.sampling import greedy


@pytest.fixture
def case(tmp_path):
    return Case("dflash2", tmp_path)


def _order(shape, axes):
    """Rows of the dynamic kernels' projection read in another order."""

    def wrong(monkeypatch):
        honest = Convolution.around

        def around(self, normed):
            weight = self.kernel.weight
            rows = weight.reshape(*shape, -1).transpose(*axes, 3).reshape(weight.shape)
            return honest(replace(self, kernel=Matrix(rows)), normed)

        monkeypatch.setattr(Convolution, "around", around)

    return wrong


def _taps_ahead(monkeypatch):
    def around(self, normed):
        base, sides = mx.flip(self.base, axis=1), self.base.shape[0]
        weight = self.kernel.weight
        flipped = mx.flip(weight.reshape(sides, base.shape[1], -1, weight.shape[1]), axis=1)
        other = replace(self, base=base, kernel=Matrix(flipped.reshape(weight.shape)))
        return honest(other, normed)

    honest = Convolution.around
    monkeypatch.setattr(Convolution, "around", around)


def _kernels_of_the_output(monkeypatch):
    """The output's dynamic kernel made of what it filters."""
    honest = Convolution.around

    def around(self, normed):
        inward, _ = honest(self, normed)
        return inward, lambda x: honest(self, x)[1](x)

    monkeypatch.setattr(Convolution, "around", around)


def _one_side(monkeypatch):
    honest = Convolution.around
    monkeypatch.setattr(Convolution, "around", lambda self, x: (honest(self, x)[0], lambda y: y))


def _normed_context(monkeypatch):
    """Context rows that pass the layer's input norm."""
    honest = Backbone.context_rows

    def context_rows(self, features):
        weights = self._weights
        normed = weights.context_norm * weights.layers[0].input_norm
        changed = Backbone.__new__(Backbone)
        changed.__dict__ = self.__dict__ | {"_weights": replace(weights, context_norm=normed)}
        return honest(changed, features)

    monkeypatch.setattr(Backbone, "context_rows", context_rows)


def _same_predecessor(monkeypatch):
    """The anchor as every slot's token before, in place of the one that was chosen."""
    honest = Selector.fill

    def fill(self, block, readout, anchors, base, hidden):
        for slot in range(base.shape[1]):
            one = slice(slot, slot + 1)
            honest(self, block, readout, anchors, base[:, one], hidden[:, one])

    monkeypatch.setattr(Selector, "fill", fill)


def _unary(monkeypatch):
    """Tokens by the slots' own logits."""

    def fill(self, block: BlockBuilder, readout, anchors, base, hidden):
        for slot in range(base.shape[1]):
            block.add(base[:, slot])

    monkeypatch.setattr(Selector, "fill", fill)


TRAPS = {
    "side, tap and group in another order": _order((2, 2, 4), (0, 2, 1)),
    "sides within taps": _order((2, 2, 4), (1, 0, 2)),
    "taps count forwards": _taps_ahead,
    "the output's own kernel": _kernels_of_the_output,
    "one side only": _one_side,
    "a normed context": _normed_context,
    "the anchor before every slot": _same_predecessor,
    "no selector": _unary,
}


@pytest.mark.parametrize("trap", TRAPS)
def test_every_trap_shows(case, monkeypatch, trap):
    """A wrong reading that raises nothing and only accepts less."""
    config = case.convert()
    assert close(case.draft(config).logits, case.expected().logits)
    TRAPS[trap](monkeypatch)
    assert not close(case.draft(config).logits, case.expected().logits)


@pytest.mark.parametrize("name", ["dflash2", "dspine"])
def test_rows_of_a_batch_are_those_of_requests_alone(tmp_path, name):
    """A convolution, a selector or an injection that mixes the rows of requests."""
    case = Case(name, tmp_path)
    drafter = case.drafter(case.convert())
    rng = np.random.default_rng(1)
    taps = rng.normal(0, 1, (3, len(drafter.config.taps), ROWS, drafter.config.target_hidden_size))
    rows = (ROWS, 5, 9)

    def contexts():
        made = [drafter.new_context() for _ in rows]
        for context, values, count in zip(made, taps, rows, strict=True):
            features = [mx.array(tap.astype(np.float32)) for tap in values]
            drafter.extend(context, features, mx.zeros((ROWS,), dtype=mx.int32), count)
        return made

    anchors = [mx.array([token], dtype=mx.int32) for token in (ANCHOR, 3, VOCAB - 1)]
    alone = [drafter.draft(c, a, greedy) for c, a in zip(contexts(), anchors, strict=True)]
    batch = context_batch(drafter, contexts())
    together = batch.draft([Wanted(anchor, greedy, False) for anchor in anchors])
    for one, other in zip(alone, together, strict=True):
        assert other is not None and one.tokens.tolist() == other.tokens.tolist()
        assert close(one.logits, np.array(other.logits))
        assert close(one.base_logits, np.array(other.base_logits))


def test_a_convolution_can_be_absent(tmp_path):
    """A selector without convolutions, which a kernel size of 0 stands for."""
    case = Case("dflash2_bare", tmp_path)
    names = [
        f"layers__{i}__{sublayer}_conv__{part}"
        for i in range(3)
        for sublayer in ("attention", "mlp")
        for part in ("base_kernel", "kernel_projection__weight")
    ]
    tensors(**dict.fromkeys(names))(case.source)
    config = case.convert()
    assert not config.has_convolutions
    assert close(case.draft(config).logits, case.expected().logits)
