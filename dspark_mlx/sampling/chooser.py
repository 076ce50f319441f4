"""What both rules share: a request's settings applied to logits, and log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..types import Fault
from . import Judgement, LogProbs, Position, finite_rows
from .effective_temperature import effective_temperature
from .settings import LogitsProcessor, Sampling
from .transform import Filters, normalize, process


@dataclass(frozen=True)
class Rows:
    """The target's rows of a verify forward after a request's settings.

    Attributes:
        processed: logits after the logits processors, float32 `[rows, V]`.
        weights: log-weights after filters and temperature, float32 `[rows, V]`.
        faults: see `Judgement`.
    """

    processed: mx.array
    weights: mx.array
    faults: mx.array


class Chooser:
    """The settings of one request, applied to the target's logits and to the drafter's.

    Args:
        sampling: the request's settings.
        processors: the request's logits processors, see `transform.make_processors`.
    """

    def __init__(self, sampling: Sampling, processors: list[LogitsProcessor]) -> None:
        self._processors = processors
        self._target = _filters(sampling, sampling.temperature)
        draft = sampling.draft_temperature
        self._draft = _filters(sampling, sampling.temperature if draft is None else draft)
        self._xtc = sampling.xtc_probability if sampling.temperature > 0 else 0.0
        self._top = sampling.logprobs
        self.temperature = effective_temperature(sampling)

    @property
    def needs_prefix(self) -> bool:
        """See `Sampler.needs_prefix`."""
        return bool(self._processors)

    def draw_xtc(self, keys: mx.array) -> mx.array | None:
        """Whether XTC applies: keys, uint32 `[rows, 2]`, to bool `[rows, 1]`; None without XTC."""
        if not self._xtc:
            return None
        return mx.vmap(lambda key: mx.random.uniform(shape=(1,), key=key))(keys) < self._xtc

    def target_weights(
        self, logits: mx.array, position: Position, block: mx.array | None, use_xtc: mx.array | None
    ) -> Rows:
        """The target's processed logits and log-weights at every row.

        Args:
            logits: the target's logits, `[rows, V]`.
            position: position of the first row.
            block: the tokens that rows 1 and on follow, int32 `[rows - 1]`; None for one row.
            use_xtc: whether XTC applies to each row, see `draw_xtc`.
        """
        broken = mx.logical_not(finite_rows(logits))
        faults = broken.astype(mx.int32)
        if self._target is None and not self._processors and self._top is None:
            return Rows(logits, logits, faults)
        processed = process(self._processors, logits, position.prefix, block)
        if self._processors:
            largest = processed.max(axis=-1)
            processor_faults = mx.where(mx.isfinite(largest), 0, Fault.PROCESSOR)
            processor_faults = mx.where(largest == -mx.inf, Fault.NOTHING_LEFT, processor_faults)
            faults = mx.where(broken, Fault.TARGET, processor_faults).astype(mx.int32)
            # A processor may leave no token after one that ends the text or is not allowed. Such
            # rows are judged without processors, since nothing of them is committed.
            empty = (faults == Fault.NOTHING_LEFT)[:, None]
            processed = mx.where(empty, logits.astype(mx.float32), processed)
        weights = self._target(processed, use_xtc) if self._target else processed
        return Rows(processed, weights, faults)

    def draft_weights(
        self,
        logits: mx.array,
        position: Position,
        drawn: Sequence[mx.array],
        ids: mx.array | None,
        vocabulary: int,
        use_xtc: mx.array | None,
    ) -> mx.array:
        """The log-weights that a slot's token is chosen by, `[1, size]`.

        When the logits processors leave no token, the weights are those without processors.

        Args:
            logits: the drafter's corrected logits, `[1, size]`.
            position: position of the block's anchor.
            drawn: tokens of the slots before, int32 `[1]` each.
            ids: token id of each column, int32 `[size]`; None for the whole vocabulary.
            vocabulary: size of the target's vocabulary, which logits processors expect.
            use_xtc: whether XTC applies, bool `[1, 1]`; None without XTC.
        """
        if self._processors:
            assert position.prefix is not None
            logits = logits.astype(mx.float32)
            whole = logits
            if ids is not None:
                absent = mx.full((1, vocabulary), -mx.inf)
                whole = mx.put_along_axis(absent, ids[None].astype(mx.int32), logits, axis=-1)
            prefix = mx.concatenate([position.prefix, *drawn])
            whole = process(self._processors, whole, prefix, None)
            left = whole if ids is None else mx.take(whole, ids, axis=-1)
            logits = mx.where(left.max(axis=-1, keepdims=True) > -mx.inf, left, logits)
        if self._draft is None:
            return logits
        return self._draft(logits.astype(mx.float32), use_xtc, ids)

    def judgement(
        self,
        rows: Rows,
        block: mx.array | None,
        accepted: mx.array | None,
        last: mx.array,
        finite: mx.array | None,
    ) -> Judgement:
        """A rule's decision, with log-probabilities if the request asks for them.

        Args:
            rows: the target's rows of the verify forward.
            block: the drafted tokens that were verified, int32 `[rows - 1]`; None for a plain step.
            accepted, last, finite: see `Judgement`.
        """
        logprobs = self._logprobs(rows.processed, block, accepted, last)
        return Judgement(accepted, last, rows.faults, finite, logprobs)

    def _logprobs(
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
            # Rows after the row of `last` are not committed, and their numbers are not read.
            survives = mx.arange(block.size + 1) < accepted
            tokens = mx.where(survives, mx.concatenate([block, last]), last)
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
    """Filters of a temperature; None where it is 0, since no filter removes the likeliest token."""
    return Filters(sampling, temperature) if temperature > 0 and sampling.temperature > 0 else None
