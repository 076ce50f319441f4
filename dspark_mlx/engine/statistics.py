"""Running totals of a request, from its rounds."""

from __future__ import annotations

import mlx.core as mx

from ..types import Round, Statistics


class Tally:
    """Adds rounds up into `Statistics`.

    Args:
        prompt_tokens: tokens of the prompt.
    """

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._prefill = 0.0
        self._seconds = 0.0
        self._host = 0.0
        self._tokens = self._rounds = self._blocks = self._drafted = self._scheduled = (
            self._accepted
        ) = 0

    def add(self, round_: Round) -> None:
        """Count a round."""
        self._tokens += len(round_.tokens)
        if round_.prefill:
            self._prefill += round_.seconds
            return
        self._rounds += 1
        self._seconds += round_.seconds
        self._host += round_.host_seconds
        self._blocks += round_.drafted > 0
        self._drafted += round_.drafted
        self._scheduled += round_.scheduled
        self._accepted += round_.accepted

    def statistics(self) -> Statistics:
        """The totals up to now."""
        return Statistics(
            prompt_tokens=self._prompt_tokens,
            prompt_seconds=self._prefill,
            generation_tokens=self._tokens,
            generation_seconds=self._seconds,
            rounds=self._rounds,
            blocks=self._blocks,
            drafted=self._drafted,
            scheduled=self._scheduled,
            accepted=self._accepted,
            host_seconds=self._host,
            peak_memory=mx.get_peak_memory(),
        )
