"""A target's own forwards against each other at load: rows at once, rows singly, rows rolled back.

Speculative decoding is only as right as a forward over several rows. A few of mlx-lm's families
give other logits there than row by row (a mask that does not mask, a window that is one too long),
and a module may be handed its states in a way that the probe does not see. Both are found before
anything is generated.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from ..caches import new_caches
from ..errors import InputError
from .tap import Target

ROWS = 5
"""Rows of the forwards that are compared."""

_TEXT = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 1, 4, 9, 16, 25, 36, 49, 64, 2, 7)
_OTHER = (6, 11, 17, 29)
_BEFORE = 5
# Sixteen bits round every layer's output by up to 2^-8 of it, four-bit weights add nothing to that
# between forwards. Over 60 layers that is a few percent; families that are wrong differ by tens.
_EXACT, _ROUNDED = 2e-3, 0.05


def check_rollback(target: Target, where: object) -> None:
    """Refuse a target whose rows depend on how many of them run at once, or do not roll back.

    A dozen forwards over 20 rows or fewer, evaluated together. A text of 20 tokens shows nothing of
    windows longer than that.

    Args:
        target: tapped.
        where: names the model in errors.

    Raises:
        InputError: it says which of both differs and by how much.
    """
    with target.turns:
        whole, singly, rolled_back = _forwards(target)
        gaps = mx.stack([_gap(singly, whole[_BEFORE:]), _gap(rolled_back, singly)])
        several, rollback = (float(gap) for gap in np.array(gaps))
    limit = _EXACT if target.dtype == mx.float32 else _ROUNDED
    # Written so that NaN is refused.
    if not several <= limit:
        found = f"{100 * several:.0f} % other logits where rows run together than one by one"
        raise InputError(where, found, "the same", _HINT)
    if not rollback <= limit:
        found = f"{100 * rollback:.0f} % other logits behind rows that were taken back"
        raise InputError(where, found, "the same as without them", _HINT)


_HINT = "mlx-lm's forward of this family does not decode several tokens at once."


def _forwards(target: Target) -> tuple[mx.array, mx.array, mx.array]:
    """Logits of the text at once; of what follows its first tokens, singly; and with rejections."""
    text = mx.array([token % target.vocab_size for token in _TEXT], dtype=mx.int32)
    other = mx.array([token % target.vocab_size for token in _OTHER], dtype=mx.int32)
    whole, _ = target(text, _caches(target))
    caches = _caches(target)
    target(text[:_BEFORE], caches)
    singly = [target(text[i : i + 1], caches)[0] for i in range(_BEFORE, text.size)]
    caches, position, kept = _caches(target), _BEFORE, []
    target(text[:_BEFORE], caches)
    for n in (1, 2, 3, 4):
        rows = mx.concatenate([text[position : position + n], other[: ROWS - n]])
        logits, _, rollback = target.verify(rows, caches)
        rollback.keep(n)
        kept.append(logits[:n])
        position += n
    kept += [target(text[position:], caches)[0]]
    return whole, mx.concatenate(singly), mx.concatenate(kept)


def _caches(target: Target) -> list[Any]:
    return new_caches(target.model, target.where)


def _gap(a: mx.array, b: mx.array) -> mx.array:
    """How far rows of logits are apart, each as a part of its spread; the median of them.

    The median, since in 16 bits a router's near tie may send one row to another expert.
    """
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    # Tokens that a family bans have -inf on both sides.
    banned = mx.isneginf(a) & mx.isneginf(b)
    a, b = (mx.where(banned, 0.0, logits) for logits in (a, b))
    spread = mx.sqrt(mx.var(b, axis=-1)) + 1e-9
    rows = mx.sqrt(mx.mean(mx.square(a - b), axis=-1)) / spread
    return mx.sort(rows)[rows.size // 2]
