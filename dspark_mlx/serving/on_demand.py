"""A service that begins with the first request, and ends at the latest with its owner."""

from __future__ import annotations

import threading
import weakref

from ..engine.state import Engine
from ..errors import InputError
from ..numbers import shown
from .admission import Admission, Reservation
from .handle import RequestHandle
from .job import Start, Text
from .service import Limits, Service


class OnDemand:
    """What a decoder holds, so that one that is never submitted to has no thread.

    Args:
        admission: see `Service`.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._limits = Limits()
        self._service: Service | None = None
        self._lock = threading.Lock()

    @property
    def limits(self) -> Limits:
        """How much is taken on."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        if not isinstance(limits, Limits):
            raise InputError("limits", shown(limits), "dspark_mlx.Limits")
        limits.check()
        with self._lock:
            if self._service is not None:
                raise InputError("limits", "requests submitted before", "limits set before them")
            self._limits = limits

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of requests that decode and that wait."""
        service = self._service
        return (service.active, service.waiting) if service else (0, 0)

    def submit(
        self, owner: object, engine: Engine, start: Start, text: Text, memory: Reservation
    ) -> RequestHandle:
        """Queue a request, see `Service.submit`.

        Args:
            owner: the thread ends when it is dropped; a request must hold it, so that none is left.
            engine: see `Service`.
            start, text, memory: see `Service.submit`.
        """
        with self._lock:
            if self._service is None:
                self._service = Service(engine, self._limits, self._admission)
                weakref.finalize(owner, self._service.stop).atexit = False
        return self._service.submit(start, text, memory)

    def close(self, timeout: float) -> None:
        """End the thread, if there is one; see `Service.close`."""
        if self._service is not None:
            self._service.close(timeout)
