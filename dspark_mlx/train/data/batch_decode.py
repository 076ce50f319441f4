"""Decodes many sequences at once without a drafter, to write training texts fast.

It handles token ids only, and knows nothing of texts, drafters or requests. Prompts of similar
length form a batch that is padded on the left and runs to its end; no prompt joins it later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.generate import wired_limit

from ...errors import InputError
from .padded_cache import batch_caches

_LOOK = 16
_PREFILL = 32768
_COLUMNS = 64
_MIN_NOISE = -1e3

WrittenCallback = Callable[[int, int], None]
"""Called with the number of sequences that ended, and of tokens written, since the last call."""


@dataclass(frozen=True)
class Job:
    """A sequence to continue.

    Attributes:
        prompt: token ids, at least one.
        max_tokens: most tokens to write, at least one.
        temperature: divisor of the logits; 0 for the most probable token.
        min_p: lowest probability of a token to draw, as a share of the most probable one's.
    """

    prompt: Sequence[int]
    max_tokens: int
    temperature: float
    min_p: float = 0.0


def batch_decode(
    model: nn.Module,
    jobs: Sequence[Job],
    stop_tokens: Collection[int],
    key: mx.array,
    rows: int = 256,
    progress: WrittenCallback | None = None,
) -> list[list[int]]:
    """The token ids that a model writes after every prompt, decoded `rows` prompts at a time.

    Args:
        model: an mlx-lm model without taps.
        jobs: the prompts and their settings, in any order.
        stop_tokens: ids that end a sequence; they are its last token.
        key: random key; equal keys, jobs and rows write equal tokens on one device.
        rows: most sequences that are decoded together; memory grows with it.
        progress: called every few steps.

    Returns:
        The ids written after each prompt, in the order of `jobs`.

    Raises:
        InputError: a prompt is empty, there are no tokens to write, or the model has a cache
            without a batched form.
    """
    for job in jobs:
        if not len(job.prompt) or job.max_tokens < 1:
            found = f"{len(job.prompt)} prompt tokens, {job.max_tokens} to write"
            raise InputError("batch", found, "at least one of each")
    written: list[list[int]] = [[] for _ in jobs]
    # The longest come first, so that too little memory shows at once.
    order = sorted(range(len(jobs)), key=lambda i: -len(jobs[i].prompt))
    batches = [order[i : i + rows] for i in range(0, len(order), rows)]
    keys = mx.random.split(key, max(len(batches), 1))
    with wired_limit(model):
        for number, batch in enumerate(batches):
            texts = _Batch(model, [jobs[i] for i in batch], keys[number]).run(stop_tokens, progress)
            for i, text in zip(batch, texts, strict=True):
                written[i] = text
    return written


class _Batch:
    """Sequences that are decoded together; ended ones are dropped when they are half or more."""

    def __init__(self, model: nn.Module, jobs: Sequence[Job], key: mx.array) -> None:
        self._model = model
        self._jobs = jobs
        self._key = key
        self._texts: list[list[int]] = [[] for _ in jobs]
        # The job of each row of the batch, and each row's sampling settings.
        self._rows = np.arange(len(jobs))
        self._temperatures = mx.array([job.temperature for job in jobs], dtype=mx.float32)[:, None]
        self._margins = mx.array([_margin(job) for job in jobs], dtype=mx.float32)[:, None]
        self._last, self._caches = self._prefill()

    def run(self, stops: Collection[int], progress: WrittenCallback | None) -> list[list[int]]:
        """Decode until every sequence has ended; returns the ids written for each job."""
        alive = np.ones(len(self._rows), dtype=bool)
        while alive.any():
            left = [self._jobs[i].max_tokens - len(self._texts[i]) for i in self._rows[alive]]
            tokens = self._advance(min(_LOOK, max(left)))
            before, count = int(alive.sum()), 0
            for row in np.flatnonzero(alive):
                text, job = self._texts[self._rows[row]], self._jobs[self._rows[row]]
                new = _until(tokens[row][: job.max_tokens - len(text)], stops)
                text += new
                count += len(new)
                alive[row] = len(text) < job.max_tokens and text[-1] not in stops
            if progress:
                progress(before - int(alive.sum()), count)
            if 0 < alive.sum() <= len(alive) // 2:
                self._keep(np.flatnonzero(alive))
                alive = alive[alive]
        return self._texts

    def _prefill(self) -> tuple[mx.array, list[Any]]:
        """Run all prompts but for their last tokens; returns these tokens and the caches.

        No logits are read, so none are computed.
        """
        count, longest = len(self._jobs), max(len(job.prompt) for job in self._jobs)
        rows, width = _round_up(count, longest - 1) if _plans_shapes() else (count, longest - 1)
        tokens = np.zeros((rows, width + 1), dtype=np.int32)
        padding = [width] * rows
        for row, job in enumerate(self._jobs):
            padding[row] = width + 1 - len(job.prompt)
            tokens[row, padding[row] :] = job.prompt
        caches = batch_caches(self._model, padding)
        # Memory is freed only when a forward is done, so few tokens are run at a time.
        step = max(1, _PREFILL // rows)
        if _plans_shapes():
            step = min(_COLUMNS, step)
        for start in range(0, width, step):
            self._model(mx.array(tokens[:, start : min(start + step, width)]), cache=caches)
            mx.eval([cache.state for cache in caches])
        if rows > count:
            _filter(caches, mx.arange(count))
        return mx.array(tokens[:count, -1]), caches

    def _advance(self, steps: int) -> np.ndarray:
        """Tokens of the next steps, int `[rows, steps]`.

        Rows that have ended go on, and the caller cuts them. Tokens are read only once after all
        steps, so that the device never waits for Python.
        """
        keys = mx.random.split(self._key, steps + 1)
        self._key = keys[0]
        columns = []
        for step in range(steps):
            logits = self._model(self._last[:, None], cache=self._caches)[:, -1]
            self._last = choose(logits, self._temperatures, self._margins, keys[step + 1])
            mx.async_eval(self._last)
            columns.append(self._last)
        return np.array(mx.stack(columns, axis=1))

    def _keep(self, rows: np.ndarray) -> None:
        indices = mx.array(rows.astype(np.int32))
        self._rows = self._rows[rows]
        self._temperatures = self._temperatures[indices]
        self._margins = self._margins[indices]
        self._last = self._last[indices]
        _filter(self._caches, indices)


def _plans_shapes() -> bool:
    """Whether new shapes are expensive on this device.

    MLX's CUDA backend makes a plan of its attention for every shape, and fails after some hundreds.
    """
    return mx.default_device().type == mx.DeviceType.gpu


def _round_up(rows: int, width: int) -> tuple[int, int]:
    """Rows rounded up to a power of two, and columns to a multiple of `_COLUMNS`."""
    return 1 << (rows - 1).bit_length(), -(-width // _COLUMNS) * _COLUMNS


def _filter(caches: list[Any], rows: mx.array) -> None:
    for cache in caches:
        cache.filter(rows)
        # Caches are copied one after the other: two copies of all may not fit into memory.
        mx.eval(cache.state)


def _margin(job: Job) -> float:
    """How far below the largest logit a token may be to be drawn."""
    return -job.temperature * math.log(job.min_p) if job.min_p else math.inf


@mx.compile
def choose(logits: mx.array, temperatures: mx.array, margins: mx.array, key: mx.array) -> mx.array:
    """A token for each row, `[rows]`, drawn from softmax(logits / temperature).

    The token with the largest logits / temperature + Gumbel noise has exactly this distribution,
    and multiplying all by the temperature does not change which is the largest. At temperature 0
    this is the token of the largest logit.

    Args:
        logits: logits, `[rows, vocabulary]`.
        temperatures: temperature of each row, float32 `[rows, 1]`.
        margins: how far below its row's largest a logit may be to be drawn, float32 `[rows, 1]`.
        key: random key of the noise.
    """
    logits = logits.astype(mx.float32)
    noise = mx.maximum(mx.random.gumbel(logits.shape, key=key), _MIN_NOISE)
    drawn = logits >= logits.max(axis=-1, keepdims=True) - margins
    return mx.argmax(mx.where(drawn, logits + temperatures * noise, -mx.inf), axis=-1)


def _until(tokens: np.ndarray, stops: Collection[int]) -> list[int]:
    """The tokens up to the first stop token, included."""
    ids = tokens.tolist()
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids) - 1)
    return ids[: end + 1]
