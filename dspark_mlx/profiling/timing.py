"""Times verify forwards, drafts and plain steps of a request with a given number of cached tokens.

All points of a context take turns, pass after pass, so that a machine that warms up or is busy for
a while slows all of them alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import KVCache

from ..caches import (
    cache_arrays,
    is_recurrent,
    keep_rows,
    keep_rows_each,
    leaves,
    takes_out_newest_only,
)
from ..caches.batch import join
from ..engine.state import Engine
from ..sampling import Position, Sampler, greedy, likeliest
from ..sampling.make import make_sampler
from ..sampling.packing import pack
from ..sampling.settings import Sampling
from ..targets.batch_check import runs_in_batches

PLAIN_STEPS = 4
"""Plain steps that are timed together, each launched before the last is read; their mean counts."""

_CHUNK = 256
_PENDING = 3
_RANDOM = 4096

Point: TypeAlias = tuple[str, int]
"""A thing to time: ("verify", width), ("draft", 0), ("plain", 0), or for a batch of several
requests (number of requests as text, width)."""
Timed: TypeAlias = Callable[[], float]
"""A function that runs a point once and returns the seconds that it took."""
Times: TypeAlias = dict[Point, list[float]]
"""Seconds of every run of every point."""


def take_turns(
    points: Mapping[Point, Timed],
    repeats: int,
    measured: Callable[[int], None] = lambda passes: None,
    seconds: float = 2.5,
    least: int = 3,
    until: float = math.inf,
) -> Times:
    """Seconds of every point, one value from each pass over all points.

    The first pass warms up and does not count, unless it ends after `until`: a device may compile
    in it, for seconds, what later rounds run at once.

    Args:
        points: the points, which run in their order.
        repeats: most passes that count.
        measured: called after each pass with the number of passes that count.
        seconds: time after which no pass begins, if `least` passes were made.
        least: passes to make even if they take longer than `seconds`.
        until: time of `perf_counter` after which no further pass begins, however few were made.
    """
    first = {point: run() for point, run in points.items()}
    started = perf_counter()
    passes = int(started > until)
    times = {point: [taken] * passes for point, taken in first.items()}
    while passes < repeats and perf_counter() < (
        until if passes < least else min(started + seconds, until)
    ):
        for point, run in points.items():
            times[point].append(run())
        passes += 1
        measured(passes)
    return times


class Session:
    """One request's caches, filled to a length and rolled back to it after every forward.

    A rotating cache writes a single row over an old one, which nothing can bring back, and cannot
    drop all rows of a forward; a recurrent state forgets what it was; entries of compressed windows
    can be opened again for the newest forward only. With such caches every
    forward's first row stays, as in the decode loop, and the context grows by it. Where states are
    recurrent a verify forward's time includes keeping half of its rows, since they are computed
    again.

    Args:
        engine: target and drafter.
        text: token ids of a text, which forwards read piece by piece, over and over: a mixture of
            experts routes the rows of one to as many experts as those of a request. Without it
            they read ids at random.

    Attributes:
        length: positions in the target's caches.
    """

    def __init__(self, engine: Engine, text: Sequence[int] = ()) -> None:
        self._engine = engine
        # NumPy's generator leaves MLX's random state, which the application may use, unchanged.
        rng, vocabulary = np.random.default_rng(0), engine.target.vocab_size
        self._text = np.array(text, np.int32) if text else rng.integers(0, vocabulary, _RANDOM)
        self._place = 0
        self._caches = engine.target.new_caches()
        self._context = engine.drafter.new_context() if engine.drafter else None
        self._taps: list[mx.array] = []
        self._recurrent = any(is_recurrent(leaf) for leaf in leaves(self._caches))
        self._grows = takes_out_newest_only(self._caches)
        self.length = 0

    def fill(self, length: int, seconds: float) -> int:
        """Prefill up to `length`, for at most about `seconds`.

        Returns:
            The length reached, in tokens. Where time ran out it is less than `length`, but at least
            one chunk of 256 tokens more than before.
        """
        started = perf_counter()
        while self.length < length:
            tokens = self._tokens((min(_CHUNK, length - self.length),))
            _, taps = self._engine.target(tokens, self._caches)
            self.length += tokens.size
            arrays = cache_arrays(self._caches)
            if self._engine.drafter and self._context:
                self._engine.drafter.extend(self._context, taps, tokens)
                self._engine.drafter.flush(self._context)
                self._taps = self._taps or [mx.contiguous(tap[-_PENDING:]) for tap in taps]
                arrays += self._context.arrays() + self._taps
            mx.eval(arrays)
            if perf_counter() - started > seconds:
                break
        return self.length

    def prompt(self, length: int) -> list[int]:
        """The next piece of the text, token ids."""
        return [int(token) for token in np.array(self._tokens((length,)))]

    def points(self, widths: Iterable[int]) -> dict[Point, Timed]:
        """The points that are timed at every context, in their order."""
        points: dict[Point, Timed] = {("plain", 0): self._plain}
        if self._engine.drafter:
            points["draft", 0] = self._draft
        for width in widths:
            points["verify", width] = partial(self._verify, width)
        return points

    def sampling(self) -> dict[Point, Timed]:
        """The points that show what sampling costs: drafts and judged rows, greedy and sampled.

        No point includes a forward of the target.
        """
        engine = self._engine
        assert engine.drafter is not None
        gamma, vocabulary = engine.drafter.config.gamma, engine.target.vocab_size
        points: dict[Point, Timed] = {}
        for what, temperature in (("greedy", 0.0), ("sampled", 1.0)):
            sampler = make_sampler(Sampling(temperature=temperature, seed=0), vocabulary)
            points[f"{what} draft", 0] = partial(self._draft, sampler)
            for rows in (1, gamma + 1):
                points[f"{what} rows", rows] = partial(self._judge, sampler, rows)
        return points

    def _judge(self, sampler: Sampler, rows: int) -> float:
        """Seconds to judge a block of `rows` - 1 drafts; for 1 row, to choose one token."""
        drafter, context = self._engine.drafter, self._context
        assert drafter is not None and context is not None
        position, draft = Position(self.length), None
        if rows > 1:
            pick = sampler.propose(position, rows - 1)
            draft = drafter.draft(context, self._tokens((1,)), pick)
            mx.eval([a for a in (draft.tokens, draft.weights, draft.confidence) if a is not None])
        hidden = mx.zeros((rows, self._engine.target.hidden_size), dtype=self._engine.target.dtype)
        logits = self._engine.target.logits(hidden)
        mx.eval(logits)
        started = perf_counter()
        judgement = sampler.judge(logits, position, draft)
        np.array(pack(judgement, draft, rows - 1).array)
        return perf_counter() - started

    def batches(self, counts: Iterable[int], widths: Iterable[int]) -> dict[Point, Timed]:
        """The points of forwards over several requests at once; none where requests run alone."""
        plain = all(type(cache) is KVCache for cache in self._caches)
        if not plain or not runs_in_batches(self._engine.target):
            return {}
        points: dict[Point, Timed] = {}
        for requests in counts:
            caches = join([self._caches] * requests)
            mx.eval(cache_arrays(caches))
            for width in widths:
                shape = (requests, width)
                points[str(requests), width] = partial(self._verify_batch, shape, caches)
        return points

    def _verify(self, width: int) -> float:
        tokens = self._tokens((width,))
        started = perf_counter()
        logits, _, rollback = self._engine.target.verify(tokens, self._caches)
        np.array(likeliest(logits))
        if self._recurrent:
            rollback.keep((width + 1) // 2)
            mx.eval(rollback.states())
        seconds = perf_counter() - started
        if self._grows:
            rollback.keep(1)
            self.length += 1
        else:
            keep_rows(self._caches, width, 0)
        return seconds

    def _draft(self, sampler: Sampler | None = None) -> float:
        """Seconds of a draft, with new features to take in as after every round.

        Without a sampler the draft is greedy.
        """
        drafter, context = self._engine.drafter, self._context
        assert drafter is not None and context is not None
        rows, anchor = self._taps[0].shape[0], self._tokens((1,))
        tokens = self._tokens((rows,))
        started = perf_counter()
        drafter.extend(context, self._taps, tokens)
        gamma = drafter.config.gamma
        pick = sampler.propose(Position(self.length), gamma) if sampler else greedy
        draft = drafter.draft(context, anchor, pick)
        found = (draft.tokens, draft.confidence_logits, draft.weights)
        mx.eval([a for a in found if a is not None])
        seconds = perf_counter() - started
        context.trim(rows)
        return seconds

    def _plain(self) -> float:
        """Mean seconds of a plain step; each is launched before the one before it is read."""
        best = self._step(self._tokens((1,)))
        started = perf_counter()
        for _ in range(PLAIN_STEPS):
            ahead = self._step(best)
            np.array(best)
            best = ahead
        seconds = perf_counter() - started
        mx.eval(best)
        if self._grows:
            self.length += PLAIN_STEPS + 1
        else:
            keep_rows(self._caches, PLAIN_STEPS + 1, 0)
        return seconds / PLAIN_STEPS

    def _step(self, anchor: mx.array) -> mx.array:
        logits, _ = self._engine.target(anchor, self._caches)
        best = likeliest(logits)
        mx.async_eval(best)
        return best

    def _verify_batch(self, shape: tuple[int, int], caches: list[Any]) -> float:
        requests, width = shape
        tokens = self._tokens(shape)
        started = perf_counter()
        logits, _, _ = self._engine.target.verify(tokens, caches)
        np.array(likeliest(logits))
        seconds = perf_counter() - started
        keep_rows_each(caches, width, [0] * requests)
        return seconds

    def _tokens(self, shape: tuple[int, ...]) -> mx.array:
        """The next piece of the text."""
        places = self._place + np.arange(math.prod(shape))
        self._place += places.size
        return mx.array(self._text.take(places, mode="wrap").reshape(shape).astype(np.int32))
