"""Running totals of a request's rounds."""

from __future__ import annotations

import mlx.core as mx

from ..types import Round, Statistics


class Tally:
    """Adds up a request's rounds as `Statistics`.

    Args:
        prompt_tokens: tokens of the prompt.
    """

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._prefill_seconds = 0.0
        self._seconds = 0.0
        self._host_seconds = self._rollback_seconds = 0.0
        self._target_bytes = self._drafter_bytes = self._cached = 0
        self._predicted_seconds = self._taken_seconds = 0.0
        self._blocks_by: dict[str, int] = {}
        self._tokens = self._rounds = self._blocks = self._drafted = self._scheduled = (
            self._accepted
        ) = 0

    def add(self, round_: Round) -> None:
        """Add a round to the totals."""
        self._tokens += len(round_.tokens)
        if round_.prefill:
            self._prefill_seconds += round_.seconds
            self._cached = round_.cached_tokens
            self._target_bytes = round_.target_bytes_per_token
            self._drafter_bytes = round_.drafter_bytes_per_token
            return
        self._rounds += 1
        self._seconds += round_.seconds
        self._host_seconds += round_.host_seconds
        self._rollback_seconds += round_.rollback_seconds
        self._blocks += round_.drafted > 0
        self._drafted += round_.drafted
        self._scheduled += round_.scheduled
        self._accepted += round_.accepted
        if round_.proposer:
            self._blocks_by[round_.proposer] = self._blocks_by.get(round_.proposer, 0) + 1
        if round_.decision:
            self._predicted_seconds += round_.decision.seconds
            self._taken_seconds += round_.seconds

    def statistics(self) -> Statistics:
        """The totals up to now."""
        return Statistics(
            prompt_tokens=self._prompt_tokens,
            prompt_seconds=self._prefill_seconds,
            generation_tokens=self._tokens,
            generation_seconds=self._seconds,
            rounds=self._rounds,
            blocks=self._blocks,
            drafted=self._drafted,
            scheduled=self._scheduled,
            accepted=self._accepted,
            host_seconds=self._host_seconds,
            peak_memory=mx.get_peak_memory(),
            rollback_seconds=self._rollback_seconds,
            target_bytes_per_token=self._target_bytes,
            drafter_bytes_per_token=self._drafter_bytes,
            blocks_by=dict(self._blocks_by),
            predicted_seconds=self._predicted_seconds,
            taken_seconds=self._taken_seconds,
            cached_tokens=self._cached,
        )
