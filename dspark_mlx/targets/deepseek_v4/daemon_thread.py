"""A thread for what may never end, such as waiting for another machine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from ...system.handing_on import HandingOn

_T = TypeVar("_T")


class DaemonThread:
    """Does work in its order. An executor's thread would hold up the end of the process.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, work: Callable[[], _T]) -> Future[_T]:
        """The future result of a call, or what it raises."""
        future: Future[_T] = Future()
        self._work.put((work, future))
        return future

    def _run(self) -> None:
        while True:
            work, future = self._work.get()
            with HandingOn(future.set_exception):
                future.set_result(work())
