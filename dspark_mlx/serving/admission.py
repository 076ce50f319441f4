"""Admits requests whose memory there is: kept prompts give way first, then requests wait or fail.

A request is admitted with all that it can come to need: caches and drafter context for its prompt
and `max_tokens`. What requests that run have not taken yet of theirs is not given to others.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from ..errors import MemoryLimitError
from ..progress import ProgressCallback
from ..reuse.kept import KeptPrompts
from ..system.memory import Memory, device_memory
from ..types import Round
from .footprint import Footprint


@dataclass(frozen=True)
class Need:
    """What a request needs memory for.

    Attributes:
        prompt: tokens of its prompt.
        answer: tokens of its answer at most.
        rows: prompt tokens that a forward reads at most.
        batched: whether it decodes in a batch with others, whose rows are all as long as the
            longest one's.
    """

    prompt: int
    answer: int
    rows: int
    batched: bool = False

    @property
    def tokens(self) -> int:
        """Positions that it comes to hold."""
        return self.prompt + self.answer

    @property
    def forward(self) -> int:
        """Rows of its widest forward."""
        return min(self.rows, self.prompt)


class Admission:
    """Decides which requests of a target may begin; all its decoders share one.

    Args:
        memory: reads how much memory there is.
    """

    def __init__(self, memory: Callable[[], Memory] = device_memory) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self._held: list[Reservation] = []
        self._waiting: list[weakref.WeakMethod[Callable[[], None]]] = []

    def when_released(self, call: Callable[[], None]) -> None:
        """Let a method be called whenever a request has ended; it must wait for nothing."""
        self._waiting.append(weakref.WeakMethod(call))

    def why_not(self, asked: Reservation) -> MemoryLimitError | None:
        """Why a request cannot begin now; None where it can, if need be instead of kept prompts."""
        with self._lock:
            return self._judged(asked)[1]

    def take(self, asked: Reservation) -> MemoryLimitError | None:
        """Give a request its memory; returns why not, where there is not as much."""
        with self._lock:
            lacking, refused = self._judged(asked)
            if refused is not None:
                return refused
            if lacking > 0 and asked.kept is not None:
                asked.kept.give_up(lacking)
            asked.holds = True
            self._held.append(asked)
            return None

    def released(self) -> None:
        """Call those that wait for an end; takes no lock, since garbage collection may call it."""
        for method in list(self._waiting):
            call = method()
            if call is not None:
                call()

    def _judged(self, asked: Reservation) -> tuple[int, MemoryLimitError | None]:
        """Bytes that are missing beside kept prompts, and why the request cannot begin."""
        held = self._held = [each for each in self._held if each.holds]
        memory, kept = self._memory(), asked.kept_bytes
        lacking = _lacking(asked, held, memory)
        if lacking <= kept:
            return lacking, None
        # What those that run hold by now, the forward that may be running included.
        returned = sum(each.now for each in held) + max((r.forward for r in held), default=0)
        later = bool(held) and asked.most <= memory.free + kept + returned
        words = f"{asked.need.prompt:,} tokens of prompt, {asked.need.answer:,} of answer"
        free = asked.most - (lacking - kept)
        return lacking, MemoryLimitError(asked.most, free, words, memory.name, later)


def _lacking(asked: Reservation, held: Sequence[Reservation], memory: Memory) -> int:
    """Bytes that are missing for a request beside those that run; 0 or less where none are."""
    every = [*held, asked]
    most = _sum([(each, each.need.tokens) for each in every])
    now = _sum([(each, each.tokens) for each in held])
    return most - now + max(each.forward for each in every) - memory.free


def _sum(parts: Sequence[tuple[Reservation, int]]) -> int:
    """Bytes of the caches of requests that stand at some positions."""
    # A batch has room for its longest request in every row; who still reads is not in it.
    batch, alone = [], 0
    for each, tokens in parts:
        if each.need.batched and tokens > each.need.prompt:
            batch.append(each.bytes_at(tokens))
        else:
            alone += each.bytes_at(tokens)
    return alone + len(batch) * max(batch, default=0)


class Reservation:
    """What one request reserves.

    Args:
        admission: gives it.
        need: what it is for.
        footprint: of the request's target and drafter.
        kept: prompts that give way to it; None where none are kept.

    Attributes:
        need, kept: the arguments.
        tokens: positions that its caches hold by now.
        holds: whether it has its memory.
    """

    def __init__(
        self,
        admission: Admission,
        need: Need,
        footprint: Footprint,
        kept: KeptPrompts | None,
    ) -> None:
        self.need, self.kept = need, kept
        self.tokens, self.holds = 0, False
        self._admission, self._footprint = admission, footprint

    @property
    def now(self) -> int:
        """Bytes that its caches hold by now."""
        return self.bytes_at(self.tokens)

    @property
    def forward(self) -> int:
        """Bytes of its widest forward, beside the caches."""
        return self._footprint.forward(self.need.forward, self.need.tokens)

    @property
    def most(self) -> int:
        """Bytes that it needs alone."""
        return self.bytes_at(self.need.tokens) + self.forward

    def bytes_at(self, tokens: int) -> int:
        """Bytes of its caches at a number of positions."""
        return self._footprint.caches(tokens, self.need.forward) if tokens else 0

    @property
    def kept_bytes(self) -> int:
        """Bytes of kept prompts, which give way."""
        return self.kept.nbytes if self.kept is not None else 0

    def check(self, waits: bool = True) -> None:
        """Refuse a request that cannot have its memory.

        Args:
            waits: whether it can wait for others to end.

        Raises:
            MemoryLimitError: it says how much is needed and how much there is.
        """
        refused = self._admission.why_not(self)
        if refused is not None and not (waits and refused.later):
            raise refused

    def take(self) -> MemoryLimitError | None:
        """Reserve now; returns why not, where there is not as much. Kept prompts give way."""
        return self._admission.take(self)

    def __enter__(self) -> Reservation:
        """Reserve now.

        Raises:
            MemoryLimitError: there is not as much.
        """
        refused = self.take()
        if refused is not None:
            raise refused
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Give it back; does nothing the second time."""
        held, self.holds = self.holds, False
        if held:
            self._admission.released()

    def reading(self, progress: ProgressCallback | None) -> ProgressCallback:
        """The progress of the prompt, passed on, by which this knows what the caches hold."""

        def read(done: int, total: int) -> None:
            self.tokens = done
            if progress is not None:
                progress(done, total)

        return read

    def during(self, rounds: Generator[Round, None, None]) -> Generator[Round, None, None]:
        """The same rounds, which have this memory from the first to the last.

        Raises:
            MemoryLimitError: at the first round, where there is not as much.
        """
        with self, contextlib.closing(rounds):
            for round_ in rounds:
                self.count(round_)
                yield round_

    def count(self, round_: Round) -> None:
        """Note what a round has added to the caches."""
        self.tokens = max(self.tokens, self.need.prompt) + len(round_.tokens)
