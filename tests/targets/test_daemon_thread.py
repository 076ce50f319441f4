"""Work of a thread that may never end: what goes wrong in it reaches whoever waits."""

from __future__ import annotations

import pytest

from dspark_mlx.targets.deepseek_v4.daemon_thread import DaemonThread


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", [ValueError("bad"), ReferenceError("gone"), SystemExit(3)])
def test_every_error_reaches_the_waiter_and_the_thread_goes_on(error):
    """A thread that ends of an error nobody thought of, and a waiter that never hears of it."""
    thread = DaemonThread("test")
    failed, later = thread.submit(lambda: fail(error)), thread.submit(lambda: 7)
    assert failed.exception(timeout=60) is error
    assert later.result(timeout=60) == 7
