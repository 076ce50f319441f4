"""Listens on an address, and stops in two steps: answers end by themselves, then at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from ..decoder import Decoder
from ..errors import InputError

_LOG = logging.getLogger("uvicorn.error")


def listener(host: str, port: int) -> socket.socket:
    """A socket that is bound to an address and does not listen yet.

    Args:
        host: name or address of an interface of this machine.
        port: the port; 0 for one that is free.

    Raises:
        InputError: the host is unknown, is none of this machine's, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
    except (OSError, UnicodeError) as error:
        raise InputError("--host", host, "a name or an address of this machine") from error
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(address)
    except OSError as error:
        made.close()
        found = f"{host} port {port}, which cannot be listened on ({error.strerror})"
        raise InputError("--port", found, "an address of this machine with a free port") from error
    return made


class Server(uvicorn.Server):
    """Serves until Ctrl-C or SIGTERM; a second one ends the answers that still run.

    Their clients are told that the server shuts down. A third one leaves them without a word.

    Args:
        decoder: computes the answers.
        app: the application.
        settings: of `uvicorn.Config`.
    """

    def __init__(self, decoder: Decoder, app: ASGIApp, **settings: Any) -> None:
        super().__init__(uvicorn.Config(app, **settings))
        self._decoder = decoder
        self._signals = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`, whose handlers of signals stand before the event loop begins.

        Otherwise asyncio's own would be there for a moment, which cancels the half-begun start.
        """
        with super().capture_signals():
            super().run(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing more: `run` has done it."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`, which does not say where it listens if it was given sockets."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        for each in sockets or () if self.started and not self.should_exit else ():
            host, port = each.getsockname()[:2]
            address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            _LOG.info("dspark_mlx running on %s (Ctrl-C ends it)", address)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See `uvicorn.Server`."""
        self._signals += 1
        loop = self._loop
        if self._signals == 2 and sig == signal.SIGINT and loop and not loop.is_closed():
            # Not here: closing waits for a round, and what was interrupted may hold a lock.
            closing = threading.Thread(target=self._decoder.close, daemon=True)
            loop.call_soon_threadsafe(closing.start)
            return
        super().handle_exit(sig, frame)
