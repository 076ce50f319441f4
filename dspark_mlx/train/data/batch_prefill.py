"""How a batch begins: its prompts read, and what is left of them.

Keys and values can be padded on the left. Recurrent states have no place for padding, and neither
have families whose positions it upsets. There the rows begin at the same position, the columns that
all prompts have are read, and what longer prompts have beyond them is read one token at a time
while shorter ones are continued already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from ...caches import leaves, new_caches
from .padded_cache import padded_caches

_PREFILL = 32768
_COLUMNS = 64


@dataclass
class BatchState:
    """Where the rows of a batch stand.

    Attributes:
        last: the token that each row reads next, `[rows]`.
        caches: of all rows.
        unread: the tokens of the prompts behind `last`, int32 `[rows, columns]`; -1 where a prompt
            has none.
    """

    last: mx.array
    caches: list[Any]
    unread: np.ndarray

    def keep(self, rows: np.ndarray) -> None:
        """Keep the given rows only."""
        indices = mx.array(rows.astype(np.int32))
        self.last, self.unread = self.last[indices], self.unread[rows]
        _take(self.caches, indices)


def prefill(model: nn.Module, prompts: Sequence[Sequence[int]], padded: bool) -> BatchState:
    """Read prompts, as many columns at once as rows allow; no logits are computed.

    Args:
        model: an mlx-lm model without taps.
        prompts: token ids, at least one each.
        padded: whether the rows are padded, see `can_be_padded`.

    Raises:
        InputError: the model has a cache of a kind that is not known here.
    """
    return (_padded if padded else _aligned)(model, prompts)


def _padded(model: nn.Module, prompts: Sequence[Sequence[int]]) -> BatchState:
    """All but the last tokens, which come to stand in one column."""
    width = max(len(prompt) for prompt in prompts) - 1
    if _plans_shapes():
        width = -(-width // _COLUMNS) * _COLUMNS
    tokens = np.zeros((len(prompts), width + 1), dtype=np.int32)
    padding = [width + 1 - len(prompt) for prompt in prompts]
    for row, prompt in enumerate(prompts):
        tokens[row, padding[row] :] = prompt
    padding += [width] * (_rounded(len(prompts)) - len(prompts))
    caches = padded_caches(model, padding)
    _read(model, tokens[:, :width], caches)
    return BatchState(mx.array(tokens[:, width]), caches, tokens[:, width + 1 :])


def _aligned(model: nn.Module, prompts: Sequence[Sequence[int]]) -> BatchState:
    """The columns that all prompts have, but for the last one."""
    width = min(len(prompt) for prompt in prompts) - 1
    if _plans_shapes():
        width = width // _COLUMNS * _COLUMNS
    longest = max(len(prompt) for prompt in prompts)
    tokens = np.full((len(prompts), longest), -1, dtype=np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    caches = new_caches(model, "batch")
    _read(model, tokens[:, :width], caches)
    return BatchState(mx.array(tokens[:, width]), caches, tokens[:, width + 1 :])


def _read(model: nn.Module, tokens: np.ndarray, caches: list[Any]) -> None:
    """Run columns, `[rows, columns]`, part by part."""
    count, width = tokens.shape
    rows = _rounded(count)
    tokens = np.pad(tokens, ((0, rows - count), (0, 0)))
    # Memory is freed only when a forward is done, so few tokens are run at a time.
    step = max(1, _PREFILL // rows)
    if _plans_shapes():
        step = min(_COLUMNS, step)
    for start in range(0, width, step):
        model(mx.array(tokens[:, start : start + step]), cache=caches)
        mx.eval([vars(leaf) for leaf in leaves(caches)])
    if rows > count:
        _take(caches, mx.arange(count))


def _plans_shapes() -> bool:
    """Whether new shapes are expensive on this device.

    MLX's CUDA backend makes a plan of its attention for every shape, and fails after some hundreds.
    """
    return mx.default_device().type == mx.DeviceType.gpu


def _rounded(rows: int) -> int:
    """Rows rounded up to a power of two where shapes are expensive."""
    return 1 << (rows - 1).bit_length() if _plans_shapes() else rows


def _take(caches: list[Any], rows: mx.array) -> None:
    """Keep the given rows of every array."""

    def taken(value: Any) -> Any:
        return value[rows] if isinstance(value, mx.array) and value.ndim else value

    for leaf in leaves(caches):
        vars(leaf).update(tree_map(taken, vars(leaf)))
        # Caches are copied one after the other: two copies of all may not fit into memory.
        mx.eval(vars(leaf))
