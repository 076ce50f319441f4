"""Reads bodies, sends answers whole or as server-sent events, and notices clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import InputError
from ..serving.handle import Answer
from ..system.strict_json import decode, parse_json
from .fields import Fields
from .generation import Generation
from .options import Options
from .refusals import Refused, error_body, is_anthropic, refusal
from .running import Running

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
KEEPALIVE = b": keepalive\n\n"
"""A comment between two events, which clients skip."""


class Writer(Protocol):
    """How a dialect writes answers."""

    def whole(self, running: Running, answers: list[Answer]) -> dict[str, Any]:
        """The body of an answer that is sent at once."""
        ...

    def events(self, running: Running) -> AsyncIterator[bytes]:
        """The events of an answer that is sent while it is made."""
        ...


def event(data: dict[str, Any] | str, name: str = "") -> bytes:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, allow_nan=False)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


async def read_body(request: Request, options: Options) -> Fields:
    """The JSON object of a request.

    Raises:
        InputError: it is not JSON, or no object.
        Refused: it is too long, or does not come in time.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(options.body_timeout):
            async for part in request.stream():
                body += part
                if len(body) > options.max_body_bytes:
                    message = f"the body is longer than {options.max_body_bytes} bytes"
                    raise Refused(413, message, "body_too_long")
    except TimeoutError as error:
        raise Refused(408, "the body did not come in time", "timeout") from error
    return Fields(parse_json(decode(bytes(body), "body", "JSON"), "body"))


async def respond(
    request: Request, generation: Generation, running: Running, writer: Writer
) -> ASGIApp:
    """The response to a request that runs."""
    if running.asked.stream:
        told = _errors_told(writer.events(running), generation, request.url.path)
        return _EventStream(running, told, generation.options)
    async with _watched(running, request.receive):
        try:
            answers = await running.answers()
        except InputError as error:
            raise _while_running(error, generation) from error
        return JSONResponse(writer.whole(running, answers))


class _EventStream:
    """Sends events; comments while none come, nothing more to a client that does not read."""

    def __init__(self, running: Running, events: AsyncIterator[bytes], options: Options) -> None:
        self._running, self._events, self._options = running, events, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(part: bytes, more: bool = True) -> None:
            message = {"type": "http.response.body", "body": part, "more_body": more}
            await asyncio.wait_for(send(message), self._options.write_timeout)

        async with _watched(self._running, receive):
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            with contextlib.suppress(TimeoutError):  # the client does not read: it is left alone
                async for part in _with_comments(self._events, self._options.keepalive):
                    await write(part)
                await write(b"", more=False)


@contextlib.asynccontextmanager
async def _watched(running: Running, receive: Receive) -> AsyncIterator[None]:
    """End a request when its client has gone, and in any case behind the block."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        running.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        running.close()


async def _with_comments(events: AsyncIterator[bytes], silence: float) -> AsyncIterator[bytes]:
    """The events, and a comment after each so many seconds without one."""
    awaited: asyncio.Future[bytes] | None = None
    try:
        while True:
            awaited = awaited or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({awaited}, timeout=silence)
            if not done:
                yield KEEPALIVE
                continue
            try:
                part = awaited.result()
            except StopAsyncIteration:
                return
            awaited = None
            yield part
    finally:
        if awaited is not None:
            awaited.cancel()


async def _errors_told(
    events: AsyncIterator[bytes], generation: Generation, path: str
) -> AsyncIterator[bytes]:
    """The events; an error that ends the answer becomes the last one."""
    try:
        async for part in events:
            yield part
    except (InputError, Refused) as error:
        anthropic = is_anthropic(path)
        body = error_body(_while_running(error, generation), anthropic)
        yield event(body, "error" if anthropic or path == "/v1/responses" else "")


def _while_running(error: InputError | Refused, generation: Generation) -> Refused:
    """What a client is told of an error behind the start, where it may be the target's."""
    decoder = generation.decoder
    return refusal(error, str(decoder.engine.target.where), str(decoder.target_folder))
