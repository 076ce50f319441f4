"""One connection: half-closed ones get their answer, and what is no HTTP is refused in JSON."""

from __future__ import annotations

import asyncio
import json
from socket import SO_ERROR, SOL_SOCKET

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from .events import KEEPALIVE
from .refusals import Refused, error_body

_POLL = 0.1
"""Seconds between two looks for the reset of a client that has left."""
_PATIENCE = 30.0
"""Seconds that a client gets to send a request's head, or what nobody reads behind its answer; cut
off before, it would get a reset in place of the answer."""


class Connection(H11Protocol):
    """uvicorn's protocol on h11, which closes a connection whose client has closed its side.

    A client may say that it sends no more and still read (`nc -N`); one that has left looks the
    same. So something that HTTP lets every client skip is sent: the system of a client that has
    left answers it with a reset.
    """

    _half_closed = _refused = False
    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `H11Protocol`, which waits for a head without end."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """See `H11Protocol`; nothing is read behind what was no HTTP."""
        if not self._refused:
            super().data_received(data)
            self._wait_for_head()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep a connection open whose request is whole and not answered yet."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            return False
        self._half_closed = True
        if self.flow.write_paused:
            pass  # what is on its way does it
        elif cycle.response_started:  # an answer that is sent whole is complete: these are events
            self.transport.write(self.conn.send(h11.Data(data=KEEPALIVE)) or b"")
        elif self.scope["http_version"] == "1.1":
            interim = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
            self.transport.write(self.conn.send(interim))
            cycle.waiting_for_100_continue = False
        self._look_for_reset()
        return True

    def on_response_complete(self) -> None:
        """See `H11Protocol`, which goes on with a request that came behind this one."""
        super().on_response_complete()
        if self._half_closed and (self.cycle.response_complete or self.cycle.more_body):
            self.transport.close()
        elif self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete:
            self.loop.call_later(_PATIENCE, self._end_body, self.cycle)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in OpenAI's shape as an unknown path."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()  # in the middle of an answer
            return
        expected = "HTTP/1.1 with one Host, a valid length and a head of 64 kB at most"
        said = f"request: found something that HTTP does not allow; expected {expected}"
        body = json.dumps(error_body(Refused(400, said, "invalid_http"), anthropic=False)).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        response = h11.Response(status_code=400, headers=headers, reason="Bad Request")
        for part in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(part) or b"")
        self._refused = True
        self.transport.write_eof()
        self.loop.call_later(_PATIENCE, self.transport.close)

    def _wait_for_head(self) -> None:
        waits = self.conn.their_state is h11.IDLE
        if waits and self._head is None:
            self._head = self.loop.call_later(_PATIENCE, self.transport.close)
        elif not waits and self._head is not None:
            self._head.cancel()
            self._head = None

    def _end_body(self, cycle: RequestResponseCycle) -> None:
        if self.cycle is cycle and self.conn.their_state is h11.SEND_BODY:
            self.transport.close()

    def _look_for_reset(self) -> None:
        # asyncio reads no more from a half-closed socket, and would see a reset at the next write.
        if self.transport.is_closing():
            return
        if self.transport.get_extra_info("socket").getsockopt(SOL_SOCKET, SO_ERROR):
            self.transport.abort()
            return
        self.loop.call_later(_POLL, self._look_for_reset)
