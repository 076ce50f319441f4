"""Groups of machines: processes with MLX's ring backend over loopback, or threads."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .bare import listen_to_ctrl_c


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_group(folder: Path, size: int, *command: str) -> list[subprocess.Popen]:
    """Start `python COMMAND` once a rank, as mlx.launch does, with pipes for what they print."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(size)]))
    settings = {"MLX_HOSTFILE": str(hosts)}
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **settings, "MLX_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=listen_to_ctrl_c,
        )
        for rank in range(size)
    ]


class ThreadGroup:
    """A group whose members are threads of this process."""

    def __init__(self, size: int) -> None:
        self.sums = 0
        self.bytes = 0
        self._size = size
        self._barrier = threading.Barrier(size)
        self._given: list[Any] = [None] * size

    def member(self, rank: int) -> _Member:
        return _Member(self, rank)

    def sum(self, rank: int, array: np.ndarray | mx.array) -> np.ndarray:
        """What `Machines` has of a collective."""
        self._given[rank] = np.array(array)
        self._barrier.wait(30)
        assert len({(each.shape, each.dtype) for each in self._given}) == 1
        total: np.ndarray = sum(self._given[1:], self._given[0])
        if rank == 0:
            self.sums += 1
            self.bytes += total.nbytes
        self._barrier.wait(30)
        return total


class _Member:
    def __init__(self, whole: ThreadGroup, rank: int) -> None:
        self._rank = rank
        self.whole = whole

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self.whole._size
