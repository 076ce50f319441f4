"""A thread for what may never end, such as waiting for another machine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

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
            with _HandingOn(future):
                future.set_result(work())


class _HandingOn:
    """Hands whatever the block raises to whoever waits for a future, as an executor does.

    Args:
        future: of the block.
    """

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is not None:
            self._future.set_exception(error)
        return error is not None
