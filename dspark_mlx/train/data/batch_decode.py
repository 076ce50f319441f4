"""Decodes many sequences at once without a drafter, to write training texts fast.

It handles token ids only, and knows nothing of texts, drafters or requests. Prompts of similar
length form a batch, which `batch_prefill` begins and which runs to its end; no prompt joins later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.generate import wired_limit

from ...errors import InputError
from .batch_prefill import prefill
from .padded_cache import can_be_padded

_LOOK = 16
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
        InputError: a prompt is empty, there are no tokens to write, or the model has a cache of a
            kind that is not known here.
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
    padded = can_be_padded(model)
    with wired_limit(model):
        for number, batch in enumerate(batches):
            begun = _Batch(model, [jobs[i] for i in batch], keys[number], padded)
            texts = begun.run(stop_tokens, progress)
            for i, text in zip(batch, texts, strict=True):
                written[i] = text
    return written


class _Batch:
    """Sequences that are decoded together; ended ones are dropped when they are half or more."""

    def __init__(self, model: nn.Module, jobs: Sequence[Job], key: mx.array, padded: bool) -> None:
        self._model = model
        self._jobs = jobs
        self._key = key
        self._texts: list[list[int]] = [[] for _ in jobs]
        # The job of each row of the batch, and each row's sampling settings.
        self._rows = np.arange(len(jobs))
        self._temperatures = mx.array([job.temperature for job in jobs], dtype=mx.float32)[:, None]
        self._margins = mx.array([_margin(job) for job in jobs], dtype=mx.float32)[:, None]
        self._state = prefill(model, [job.prompt for job in jobs], padded)

    def run(self, stops: Collection[int], progress: WrittenCallback | None) -> list[list[int]]:
        """Decode until every sequence has ended; returns the ids written for each job."""
        alive = np.ones(len(self._rows), dtype=bool)
        while alive.any():
            unread = (self._state.unread >= 0).sum(axis=1)
            tokens = self._advance(
                min(_LOOK, max(self._left(row) + unread[row] for row in np.flatnonzero(alive)))
            )
            before, count = int(alive.sum()), 0
            for row in np.flatnonzero(alive):
                text, left = self._texts[self._rows[row]], self._left(row)
                new = _until(tokens[row][unread[row] :][:left], stops)
                text += new
                count += len(new)
                alive[row] = len(new) < left and (not new or new[-1] not in stops)
            if progress:
                progress(before - int(alive.sum()), count)
            if 0 < alive.sum() <= len(alive) // 2:
                self._keep(np.flatnonzero(alive))
                alive = alive[alive]
        return self._texts

    def _left(self, row: np.integer) -> int:
        """Tokens that a row may still write."""
        job = self._rows[row]
        return self._jobs[job].max_tokens - len(self._texts[job])

    def _advance(self, steps: int) -> np.ndarray:
        """Tokens of the next steps, int `[rows, steps]`, a prompt's own where it is not read yet.

        Rows that have ended go on, and the caller cuts them. Tokens are read only once after all
        steps, so that the device never waits for Python.
        """
        keys = mx.random.split(self._key, steps + 1)
        self._key = keys[0]
        state, columns = self._state, []
        given = mx.array(state.unread[:, :steps])
        for step in range(steps):
            logits = self._model(state.last[:, None], cache=state.caches)[:, -1]
            state.last = choose(logits, self._temperatures, self._margins, keys[step + 1])
            if step < given.shape[1]:
                state.last = mx.where(given[:, step] < 0, state.last, given[:, step])
            mx.async_eval(state.last)
            columns.append(state.last)
        state.unread = state.unread[:, steps:]
        return np.array(mx.stack(columns, axis=1))

    def _keep(self, rows: np.ndarray) -> None:
        indices = mx.array(rows.astype(np.int32))
        self._rows = self._rows[rows]
        self._temperatures = self._temperatures[indices]
        self._margins = self._margins[indices]
        self._state.keep(rows)


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
