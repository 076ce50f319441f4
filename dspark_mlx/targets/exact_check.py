"""Whether verify forwards have the bits of plain steps, in every layer of a target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import RotatingKVCache

from ..caches import CacheSettings, is_recurrent, leaves
from ..errors import InputError
from .row_by_row import RowByRow
from .self_check import cache_ways, fill_windows
from .tap import Target

# Every number of rows up to this one is checked, of wider ones 16 and the widest.
_CHECKED_EACH = 8
_SHORT, _LONG = 3, 48

EXPECTED = "the bits of plain steps, which exact asks for"
HINT = "Without --exact (exact=False) the text is equal within rounding."


def same_bits(a: mx.array, b: mx.array) -> mx.array:
    """Whether two arrays of one shape and type have the same bits."""
    return (a.view(mx.uint8) == b.view(mx.uint8)).all()


def check_exact(
    model: nn.Module, where: object, settings: CacheSettings, rows: RowByRow, most_rows: int
) -> None:
    """Compare verify forwards with plain steps, bit by bit, in every layer's output and the logits.

    Two rounds in a row, of which the first is accepted in part, and a plain step behind them: at
    the beginning of a text, further on, and with windows that are full.

    Args:
        model: it has no taps.
        where: names the model in errors.
        settings: of the caches.
        rows: of the model; attached while this runs.
        most_rows: rows of the widest forward to check.

    Raises:
        InputError: it names the first layer with other bits, and the number of rows.
    """
    numbers = {*range(2, min(most_rows, _CHECKED_EACH) + 1), min(16, most_rows), most_rows}
    for way in cache_ways(settings):
        target = Target(model, range(len(model.layers)), where, way)
        target.use_rows(rows)
        try:
            for length, full, some in (
                (_SHORT, False, sorted(numbers)),
                (_LONG, False, [most_rows]),
                (_SHORT, True, [most_rows]),
            ):
                texts = _Texts(target, length, full, most_rows)
                for number in some if texts.differ else ():
                    texts.check(number, rows)
        finally:
            target.drop_rows()
            target.close()


class _Texts:
    """Verify forwards and plain steps behind one prompt.

    Args:
        target: taps the output of every layer.
        length: tokens of the prompt.
        full: whether its windows are filled.
        most_rows: rows of the widest forward to check.

    Attributes:
        differ: False where windows should be filled and there are none.
    """

    def __init__(self, target: Target, length: int, full: bool, most_rows: int) -> None:
        count = length + most_rows // 2 + most_rows + 1
        ids = np.random.default_rng(length).integers(0, target.vocab_size, count)
        self._ids = mx.array(ids.astype(np.int32))
        self._target, self._length, self._full = target, length, full
        caches = self._begun()
        self.differ = not full or any(type(leaf) is RotatingKVCache for leaf in leaves(caches))
        if self.differ:
            ends = range(length, count)
            steps = [self._step(i, caches) for i in ends]
            self._single = [mx.concatenate(list(parts)) for parts in zip(*steps, strict=True)]
            mx.eval(self._single)

    def check(self, width: int, rows: RowByRow) -> None:
        """Refuse the target where `width` rows at once have other bits than single ones."""
        caches, kept = self._begun(), width // 2
        flags = [self._verified(width, 0, kept, caches)]
        flags.append(self._verified(width, kept, width, caches))
        attended, wanted = rows.attended, sum(not is_recurrent(leaf) for leaf in leaves(caches))
        behind = kept + width
        flags.append(self._same(self._step(self._length + behind, caches), behind))
        for same in np.array(mx.stack(flags)).tolist():
            if not all(same):
                raise self._refused(self._name(same.index(False), caches), width)
        if attended < wanted:
            found = (
                f"{wanted - attended} of {wanted} attentions with a mask of their own, or not by "
                "mlx-lm's function"
            )
            raise InputError(self._target.where, found, EXPECTED, HINT)

    def _begun(self) -> list[Any]:
        caches = self._target.new_caches()
        self._target(self._ids[: self._length], caches)
        if self._full:
            fill_windows(caches)
        return caches

    def _verified(self, width: int, start: int, kept: int, caches: list[Any]) -> mx.array:
        first = self._length + start
        logits, taps, rollback = self._target.verify(self._ids[first : first + width], caches)
        rollback.keep(kept)
        return self._same([*taps, logits], start)

    def _step(self, index: int, caches: list[Any]) -> list[mx.array]:
        logits, taps = self._target(self._ids[index : index + 1], caches)
        return [*taps, logits]

    def _same(self, outputs: Sequence[mx.array], start: int) -> mx.array:
        pairs = zip(outputs, self._single, strict=True)
        return mx.stack([same_bits(a, b[start : start + a.shape[0]]) for a, b in pairs])

    def _name(self, index: int, caches: Sequence[Any]) -> str:
        layers = self._target.model.layers
        if index == len(layers):
            return f"the logits of {type(self._target.model).__name__}"
        held = type(caches[index]).__name__ if len(caches) == len(layers) else ""
        return f"layer {index} ({type(layers[index]).__name__}{held and f', {held}'})"

    def _refused(self, name: str, width: int) -> InputError:
        full = " behind a full window" if self._full else ""
        found = f"other bits in {name} for {width} rows at once than for single ones{full}"
        return InputError(self._target.where, found, EXPECTED, HINT)
