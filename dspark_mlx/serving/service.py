"""The engine thread: it admits requests from a bounded queue and steps the active ones."""

from __future__ import annotations

import atexit
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass

import mlx.core as mx

from ..engine.active import ActiveRequests
from ..engine.state import Engine
from ..errors import BusyError, ClosedError
from ..numbers import check_whole
from ..types import Chunk, Round
from .admission import Admission, Reservation
from .buffer import Buffer
from .handle import RequestHandle
from .job import Job, Start, Text, ToReaders


@dataclass(frozen=True)
class Limits:
    """How much a decoder takes on.

    Attributes:
        active: number of requests that decode at a time; each has caches.
        waiting: number of requests that wait for one of them to end; more are refused.
        unread: number of chunks that a reader may leave unread before its request pauses. A paused
            request keeps its place and its caches.
    """

    active: int = 8
    waiting: int = 64
    unread: int = 256

    def check(self) -> None:
        """Refuse numbers that nothing could run with.

        Raises:
            InputError: a limit is no whole number, or too small.
        """
        check_whole("active", self.active, 1)
        check_whole("waiting", self.waiting, 0)
        check_whole("unread", self.unread, 1)


class Service:
    """Runs requests in a thread of its own, which ends with `close`.

    Active requests decode together, see `ActiveRequests`.

    Args:
        engine: target, drafter and scheduler.
        limits: how much it takes on.
        admission: gives requests their memory.
    """

    def __init__(self, engine: Engine, limits: Limits, admission: Admission) -> None:
        limits.check()
        self._limits = limits
        # What a request's own code raises is its reader's, `SystemExit` too: no signal comes here.
        self._together = ActiveRequests(engine, BaseException)
        self._lock = threading.Lock()
        self._waiting: deque[Job] = deque()
        self._active: list[Job] = []
        self._closing = self._cancelling = False
        # Whoever changes something puts a wake-up, which takes no lock that Python code holds.
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()
        admission.when_released(self._wake)
        self._thread = threading.Thread(target=self._run, name="dspark_mlx engine", daemon=True)
        # Threads that end with the process must let go of MLX before.
        atexit.register(self.close)
        self._thread.start()

    @property
    def active(self) -> int:
        """Number of requests that decode."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """Number of requests that wait."""
        return len(self._waiting)

    def submit(self, start: Start, text: Text, memory: Reservation) -> RequestHandle:
        """Queue a request.

        Args:
            start: adds it to those that decode.
            text: makes chunks of its rounds.
            memory: what it reserves when it begins.

        Raises:
            BusyError: as many requests wait as may.
            ClosedError: the service was closed.
            MemoryLimitError: its memory will not be there even when others have ended.
        """
        memory.check()
        buffer: Buffer[Chunk] = Buffer(self._limits.unread, self._wake)
        with self._lock:
            if self._closing:
                raise ClosedError("the decoder was closed and takes no more requests")
            # A request that has ended counts no more, though the thread has yet to let go of it.
            taken = sum(not job.ended for job in (*self._active, *self._waiting))
            if taken >= self._limits.active + self._limits.waiting:
                raise BusyError(self._limits.active, taken - self._limits.active)
            self._waiting.append(Job(start, text, buffer, memory))
        self._wake()
        return RequestHandle(buffer)

    def close(self, timeout: float = 0.0) -> None:
        """End the thread; requests that have not ended in time are cancelled.

        Args:
            timeout: seconds that requests get to end, waiting ones included.
        """
        end = time.monotonic() + timeout
        with self._lock:
            self._closing = True
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(max(end - time.monotonic(), 0.0))
        with self._lock:
            for job in (*self._active, *self._waiting):
                job.cancel()  # a prompt is not read to its end
        self.stop()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def stop(self) -> None:
        """As `close` without time, but waits for nothing; garbage collection may call it."""
        self._closing = self._cancelling = True
        self._wake()

    def _wake(self) -> None:
        self._wakes.put(None)

    def _run(self) -> None:
        try:
            while True:
                self._admit()
                ready = [job for job in self._active if not job.paused]
                if ready:
                    self._step(ready)
                elif self._closing and not self._active and not self._waiting:
                    return
                else:
                    self._sleep()
        finally:
            # No reader waits for a thread that has ended, whatever ended it.
            self.stop()
            for job in (*self._active, *self._waiting):
                job.cancel()
            self._admit()
            mx.clear_streams()
            atexit.unregister(self.close)

    def _step(self, jobs: list[Job]) -> None:
        """Run a round of each request and deliver it, or the request's error."""
        # An error that is no request's own is every reader's, also of those that are paused: they
        # may have been to leave the batch.
        with ToReaders(self._active):
            for job in jobs:
                job.begin(self._together)
            ready = [job.request for job in jobs if job.request is not None]
            owners = {job.request: job for job in self._active if job.request is not None}
            for request, done in self._together.step(ready):
                if isinstance(done, Round):
                    owners[request].deliver(done, self._together)
                else:
                    owners[request].fail(done)

    def _sleep(self) -> None:
        self._wakes.get()
        while not self._wakes.empty():
            self._wakes.get()

    def _admit(self) -> None:
        """Let go of the requests that have ended, and begin others in their places."""
        with self._lock:
            jobs = [*self._active, *self._waiting]
            gone = [job for job in jobs if job.ended or self._cancelling]
            self._active = [job for job in self._active if job not in gone]
            self._waiting = deque(job for job in self._waiting if job not in gone)
        for job in gone:
            with ToReaders([job]):
                job.close(self._together)
        while (first := self._next()) is not None:
            # In order: a small request does not overtake one that waits for memory.
            with ToReaders([first]):
                refused = first.memory.take()
                if refused is not None and refused.later:
                    return
                if refused is not None:
                    first.fail(refused)
            ended = first.ended
            with self._lock:
                self._waiting.popleft()
                if not ended:
                    self._active.append(first)
            if ended:
                with ToReaders([first]):
                    first.close(self._together)

    def _next(self) -> Job | None:
        """The request that has waited longest, if there is a place for it."""
        with self._lock:
            if len(self._active) < self._limits.active and self._waiting:
                return self._waiting[0]
            return None
