"""Computes how much of a data plan is left to write, and reports progress."""

from __future__ import annotations

import time

from ...progress import ProgressCallback
from .plan import DataPlan
from .store import Store

_MIN_BEGUN = 8


def unit(plan: DataPlan) -> str:
    """The unit of a plan's progress: "token", "s" or "conversation"."""
    if plan.answer_tokens is not None:
        return "token"
    return "s" if plan.conversations is None and plan.seconds is not None else "conversation"


class Budget:
    """The conversations that a run may still write.

    Args:
        plan: the plan, with its limits.
        store: the store that the run writes into.
        progress: called while conversations are written, in the plan's `unit`.
    """

    def __init__(self, plan: DataPlan, store: Store, progress: ProgressCallback | None) -> None:
        self._plan, self._store, self._progress = plan, store, progress
        self._end = time.monotonic() + (plan.seconds or 0)
        self._tokens = self._ended = 0
        self._begun = False

    def to_begin(self) -> int:
        """Number of conversations to begin for the next shard; 0 when the plan is done."""
        plan, store = self._plan, self._store
        counts = [plan.shard]
        # More are begun than are left: some fail, and writing a few at a time would be slow.
        if plan.conversations is not None:
            left = plan.conversations - store.conversations
            counts.append(left + left // 4 + _MIN_BEGUN if left > 0 else 0)
        if plan.answer_tokens is not None:
            left = plan.answer_tokens - store.answer_tokens
            counts.append(2 * left // plan.max_answer + _MIN_BEGUN if left > 0 else 0)
        if plan.seconds is not None and time.monotonic() >= self._end and self._begun:
            counts.append(0)
        if not plan.limited:
            counts.append(len(plan.prompts) - store.shards * plan.shard)
        return max(min(counts), 0)

    def to_keep(self) -> int | None:
        """Number of a shard's conversations that may be kept; None for all."""
        conversations = self._plan.conversations
        return None if conversations is None else conversations - self._store.conversations

    def begin_shard(self) -> None:
        """Begin the counts of a new shard, after the last one was stored."""
        self._begun = True
        self._tokens = self._ended = 0
        self._show()

    def answered(self, ended: int, tokens: int) -> None:
        """Add the progress of a batch of answers: answers that ended, and tokens written."""
        self._ended += ended
        self._tokens += tokens
        self._show()

    def _show(self) -> None:
        if not self._progress:
            return
        plan, store = self._plan, self._store
        if unit(plan) == "token":
            total = plan.answer_tokens or 0
            self._progress(min(store.answer_tokens + self._tokens, total), total)
        elif unit(plan) == "s":
            total = int(plan.seconds or 0)
            left = max(int(self._end - time.monotonic()), 0)
            self._progress(total - left, total)
        else:
            total = plan.conversations or len(plan.prompts)
            self._progress(min(store.conversations + self._ended, total), total)
