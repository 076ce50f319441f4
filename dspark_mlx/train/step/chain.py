"""Training forward of the drafters that run once a token: Eagle3 and prediction heads.

Every step runs for all positions of the texts at once (Eagle3's training-time test). In the first
step row i joins the target's feature at i with the token at i + 1. In step k it joins what step
k - 1 gave at i - 1 with the same token, as the k-th row of the block whose first row is i - k + 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import mlx.core as mx

from ...drafters.base import Embed
from ...drafters.chain import TextRows
from ...drafters.context_cache import TextCache
from ...drafters.eagle3.config import Eagle3Config
from ...drafters.eagle3.rows import Eagle3Rows
from ...drafters.mtp.config import MTPConfig
from ...drafters.mtp.rows import MTPRows
from ...drafters.tensors import DrafterTensors
from .forward import FROZEN, BlockRows, Features, TrainingBatch

_Written: TypeAlias = tuple[mx.array, mx.array]
_Step: TypeAlias = Callable[[mx.array, list[_Written]], tuple[mx.array, _Written]]


def step_mask(length: int, steps: int, window: int = 0) -> mx.array:
    """What the rows of the newest of some steps attend to, bool `[length, steps * length]`.

    Row i, the last of a block of `steps` rows, attends to the first step's rows up to the block's
    first one, and to each later step's row of its own block.

    Args:
        length: rows of a step.
        steps: how many there are, the newest included.
        window: the newest positions that a row attends to, itself included; 0 for all.
    """
    row, column = mx.arange(length)[:, None], mx.arange(length)[None]
    masks = [column <= row - steps + 1]
    masks += [column == row - steps + step for step in range(2, steps + 1)]
    mask = mx.concatenate(masks, axis=1)
    if window:
        mask = mask & mx.tile(column > row - window, (1, steps))
    return mask


class _Chain:
    """See `TrainingForward`.

    Args:
        load: makes the rows of a drafter's tensors.
        gamma: steps.
        window: see `step_mask`.
        checkpoint: whether to save memory by computing each step again in the backward pass.
    """

    def __init__(
        self, load: Callable[[DrafterTensors], TextRows], gamma: int, window: int, checkpoint: bool
    ) -> None:
        self._load = load
        self._gamma = gamma
        self._window = window
        self._checkpoint = checkpoint

    def __call__(
        self, stored: DrafterTensors, batch: TrainingBatch, features: Features
    ) -> BlockRows:
        """See `TrainingForward`."""
        rows, length = self._load(stored), batch.tokens.shape[1]
        # The last position's next token is not there; no supervised slot is read from its row.
        tokens = mx.roll(batch.tokens, -1, 1)
        joined = rows.features(mx.concatenate(features.taps, axis=-1))
        hidden: list[mx.array] = []
        written: list[_Written] = []
        for step in range(1, self._gamma + 1):
            mask = step_mask(length, step, self._window)
            run: _Step = partial(_run, rows, tokens, mask)
            if self._checkpoint:
                run = self._step_again(stored, tokens, mask)
            state, added = run(joined, written)
            written.append(added)
            row = rows.readout_row(state)
            # A block's first row is that of the position before its anchor.
            at = mx.clip(batch.anchors + step - 2, 0, length - 1)
            hidden.append(mx.take_along_axis(row, at[..., None], axis=1))
            joined = mx.roll(rows.fed_back(state, row), 1, 1)
        slots = mx.stack(hidden, axis=2)
        return BlockRows(slots.reshape(-1, *slots.shape[2:]))

    def _step_again(self, stored: DrafterTensors, tokens: mx.array, mask: mx.array) -> _Step:
        """A step that keeps only its inputs for the backward pass."""

        def run(
            learnt: dict[str, mx.array], joined: mx.array, written: list[_Written]
        ) -> tuple[mx.array, _Written]:
            own = replace(stored, tensors={**stored.tensors, **learnt})
            return _run(self._load(own), tokens, mask, joined, written)

        # MLX treats arrays in a closure as constants, which get no gradient.
        learnt = {name: value for name, value in stored.tensors.items() if name not in FROZEN}
        return partial(mx.checkpoint(run), learnt)


def _run(
    rows: TextRows, tokens: mx.array, mask: mx.array, joined: mx.array, written: list[_Written]
) -> tuple[mx.array, _Written]:
    """A step's outputs, and the keys and values that it wrote."""
    cache = TextCache(written)
    state = rows.outputs(cache, joined, tokens, mask)
    return state, cache.steps[-1]


class Eagle3Forward(_Chain):
    """Eagle3's, see `_Chain`."""

    def __init__(self, config: Eagle3Config, embed: Embed, checkpoint: bool) -> None:
        def load(stored: DrafterTensors) -> Eagle3Rows:
            return Eagle3Rows.load(config, stored, embed)

        super().__init__(load, config.gamma, config.window, checkpoint)


class MTPForward(_Chain):
    """A prediction head's, see `_Chain`."""

    def __init__(self, config: MTPConfig, embed: Embed, checkpoint: bool) -> None:
        def load(stored: DrafterTensors) -> MTPRows:
            return MTPRows.load(config, stored, embed)

        super().__init__(load, config.gamma, 0, checkpoint)
