"""Memory over thousands of rounds: what a cache holds, and nothing else, may grow."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import mlx.core as mx
import pytest
from helpers.cached import ALWAYS, MODELS, Session
from mlx.utils import tree_flatten

from dspark_mlx.caches import cache_arrays
from dspark_mlx.targets.tap import Target

WIDTH = 3


def resident() -> int:
    """Bytes that this process has in memory, without those that the C library keeps for later.

    It keeps up to some MB of what was freed, now more and now less; on other systems than Linux
    they count.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    told = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True
    )
    return int(told.stdout) * 1024


def held(session: Session) -> int:
    return sum(array.nbytes for _, array in tree_flatten(cache_arrays(session.caches)))


def active() -> int:
    """Bytes in MLX's arrays."""
    mx.synchronize()
    mx.clear_cache()
    return mx.get_active_memory()


def beside(session: Session) -> int:
    """Bytes in MLX's arrays beside those that the session's caches hold."""
    mx.eval(cache_arrays(session.caches))
    return active() - held(session)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALWAYS)
def test_memory_is_flat_over_5000_rounds(name):
    """A record of a forward, a snapshot or a graph of states that outlives its round; caches that
    outlive their request. Each of ten requests has 500 rounds, and ends where the others do.

    While caches are held, MLX counts some more than their bytes: its allocator gives an array a
    freed buffer that is larger. So what a request leaves behind is measured when it has gone.
    """
    target = Target(MODELS[name](), (1,), name)
    left, process = [], []
    for request in range(10):
        session = Session(target, seed=request)
        session.prefill(3)
        for i in range(500):
            mx.eval(session.round(WIDTH, 1 + i % 2))
            if i == 100:
                early = beside(session)
        allowed = held(session) // 16 + (16 << 10)
        assert beside(session) - early < allowed, "a round leaves something behind"
        del session
        left.append(active())
        process.append(resident())
    target.close()
    assert left[-1] - left[1] < 1 << 10, left
    assert process[-1] - process[1] < 8 << 20, process
