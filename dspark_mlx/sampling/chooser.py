"""What both rules share: the settings on both sides, and the report of log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..types import Fault
from . import Judgement, LogProbs, Position, finite_rows
from .effective_temperature import heat
from .settings import LogitsProcessor, Sampling
from .transform import Filters, normalize, process


@dataclass(frozen=True)
class Rows:
    """The target's rows under a request's settings.

    Attributes:
        processed: logits after the processors, float32 `[rows, V]`.
        weights: log-weights after filters and temperature, float32 `[rows, V]`.
        faults: see `Judgement`.
    """

    processed: mx.array
    weights: mx.array
    faults: mx.array


class Chooser:
    """The settings of one request, applied to the target's logits and to the drafter's.

    Args:
        sampling: of the request.
        processors: see `transform.make_processors`.
    """

    def __init__(self, sampling: Sampling, processors: list[LogitsProcessor]) -> None:
        self._processors = processors
        self._target = _filters(sampling, sampling.temperature)
        draft = sampling.draft_temperature
        self._draft = _filters(sampling, sampling.temperature if draft is None else draft)
        self._xtc = sampling.xtc_probability if sampling.temperature > 0 else 0.0
        self._top = sampling.logprobs
        self.temperature = heat(sampling)

    @property
    def needs_prefix(self) -> bool:
        """See `Sampler.needs_prefix`."""
        return bool(self._processors)

    def coins(self, keys: mx.array) -> mx.array | None:
        """Whether XTC applies: uint32 `[rows, 2]` to bool `[rows, 1]`; None without XTC."""
        if not self._xtc:
            return None
        return mx.vmap(lambda key: mx.random.uniform(shape=(1,), key=key))(keys) < self._xtc

    def target_weights(
        self, logits: mx.array, place: Position, block: mx.array | None, coins: mx.array | None
    ) -> Rows:
        """What the target says at every row."""
        broken = mx.logical_not(finite_rows(logits))
        faults = broken.astype(mx.int32)
        if self._target is None and not self._processors and self._top is None:
            return Rows(logits, logits, faults)
        processed = process(self._processors, logits, place.prefix, block)
        if self._processors:
            most = processed.max(axis=-1)
            own = mx.where(mx.isfinite(most), 0, Fault.PROCESSOR)
            own = mx.where(most == -mx.inf, Fault.NOTHING_LEFT, own)
            faults = mx.where(broken, Fault.TARGET, own).astype(mx.int32)
            # A row may have nothing left behind a token that ends the text, or is not allowed. Such
            # rows are judged as if there were no processors, since nothing of them is committed.
            empty = (faults == Fault.NOTHING_LEFT)[:, None]
            processed = mx.where(empty, logits.astype(mx.float32), processed)
        weights = self._target(processed, coins) if self._target else processed
        return Rows(processed, weights, faults)

    def draft_weights(
        self,
        logits: mx.array,
        place: Position,
        drawn: Sequence[mx.array],
        ids: mx.array | None,
        vocabulary: int,
        coins: mx.array | None,
    ) -> mx.array:
        """The log-weights of one slot, `[1, size]`; where nothing is left, those before it.

        Args:
            logits: corrected, `[1, size]`.
            place: of the block's first slot.
            drawn: the slots before, int32 `[1]` each.
            ids: token id of each column; None for the whole vocabulary.
            vocabulary: the target's, which logits processors expect.
            coins: see `coins`, bool `[1, 1]`.
        """
        if self._processors:
            assert place.prefix is not None
            logits = logits.astype(mx.float32)
            whole = logits
            if ids is not None:
                empty = mx.full((1, vocabulary), -mx.inf)
                whole = mx.put_along_axis(empty, ids[None].astype(mx.int32), logits, axis=-1)
            prefix = mx.concatenate([place.prefix, *drawn])
            whole = process(self._processors, whole, prefix, None)
            left = whole if ids is None else mx.take(whole, ids, axis=-1)
            logits = mx.where(left.max(axis=-1, keepdims=True) > -mx.inf, left, logits)
        if self._draft is None:
            return logits
        return self._draft(logits.astype(mx.float32), coins, ids)

    def judgement(
        self,
        rows: Rows,
        block: mx.array | None,
        accepted: mx.array | None,
        last: mx.array,
        finite: mx.array | None,
    ) -> Judgement:
        """What a rule decided, with what was asked for beside it.

        Args:
            rows: of the verify forward.
            block: drafted tokens that were verified, int32 `[rows - 1]`; None for a plain step.
            accepted, last, finite: see `Judgement`.
        """
        report = self._report(rows.processed, block, accepted, last)
        return Judgement(accepted, last, rows.faults, finite, report)

    def _report(
        self,
        processed: mx.array,
        block: mx.array | None,
        accepted: mx.array | None,
        last: mx.array,
    ) -> LogProbs | None:
        if self._top is None:
            return None
        tokens = last
        if block is not None and accepted is not None:
            # Rows past the accepted ones are not committed; what is said of them is not read.
            kept = mx.arange(block.size + 1) < accepted
            tokens = mx.where(kept, mx.concatenate([block, last]), last)
        logprobs = normalize(processed.astype(mx.float32))
        chosen = mx.take_along_axis(logprobs, tokens[:, None], axis=-1).squeeze(-1)
        ids = mx.zeros((logprobs.shape[0], 0), dtype=mx.int32)
        if self._top:
            others = logprobs.shape[-1] - self._top
            ids = mx.argpartition(logprobs, kth=others, axis=-1)[:, others:]
            order = mx.argsort(-mx.take_along_axis(logprobs, ids, axis=-1), axis=-1)
            ids = mx.take_along_axis(ids, order, axis=-1).astype(mx.int32)
        return LogProbs(chosen, ids, mx.take_along_axis(logprobs, ids, axis=-1))


def _filters(sampling: Sampling, temperature: float) -> Filters | None:
    """None where the likeliest token is taken, which no filter changes."""
    return Filters(sampling, temperature) if temperature > 0 and sampling.temperature > 0 else None
