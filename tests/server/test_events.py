"""Clients that leave, that do not read or do not send, by the application's own interface."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from helpers.http_served import MESSAGES, is_refusal
from helpers.served import served_decoder

from dspark_mlx import Limits

pytest.importorskip("starlette", reason="the extra server is not installed")
pytest.importorskip("prometheus_client", reason="the extra server is not installed")
CHAT = "/v1/chat/completions"
WAIT = 30
LONG = {
    "messages": MESSAGES,
    "max_tokens": 400,
    "temperature": 4.0,
    "seed": 2,
    "reasoning_effort": "none",
}


class Client:
    """One request; `leave` is when the client goes, `patience` how many parts it takes."""

    def __init__(self, body, leave=None, patience=10**6) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.parts: list[dict] = []
        self._body = [{"type": "http.request", "body": content, "more_body": body == b""}]
        self._leave, self._patience = leave, patience

    async def receive(self):
        if self._body:
            return self._body.pop()
        if self._leave is None:
            await asyncio.Event().wait()
        await asyncio.sleep(self._leave)
        return {"type": "http.disconnect"}

    async def send(self, part):
        if len(self.parts) >= self._patience:
            await asyncio.Event().wait()
        self.parts.append(part)

    async def run(self, app) -> None:
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": CHAT,
            "raw_path": CHAT.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": headers,
            "scheme": "http",
            "server": ("localhost", 80),
            "client": ("localhost", 1),
            "http_version": "1.1",
            "app": app,
        }
        await app(scope, self.receive, self.send)

    @property
    def text(self) -> bytes:
        return b"".join(part.get("body", b"") for part in self.parts)


@pytest.fixture
def decoder(tmp_path):
    with served_decoder(tmp_path / "served", positions=4096) as made:
        made.limits = Limits(active=1, waiting=8, unread=4)
        yield made
    made.engine.target.close()


def run(decoder, client: Client, **options) -> None:
    """Run one client against an application of its own."""
    from dspark_mlx.server.app import make_app
    from dspark_mlx.server.options import Options

    app = make_app(decoder, Options("toy", **options))
    asyncio.run(asyncio.wait_for(client.run(app), WAIT))


def let_go(decoder) -> None:
    """Wait until nothing runs and nothing waits."""
    end = time.monotonic() + WAIT
    while decoder.requests_now != (0, 0):
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_request(decoder, stream):
    """Hundreds of tokens for nobody."""
    endless = {"max_tokens": 3900, "logit_bias": {str(end): -1000 for end in decoder.stop_tokens}}
    client = Client({**LONG, **endless, "stream": stream}, leave=0.05)
    run(decoder, client)
    let_go(decoder)
    assert b"[DONE]" not in client.text
    whole = Client({"messages": MESSAGES, "stream": stream})
    run(decoder, whole)
    assert b"Bye" in whole.text
    answer = decoder.submit(MESSAGES).result(30)
    assert answer.finish_reason == "stop"


def test_a_client_that_does_not_read_is_left_alone(decoder):
    """A request that keeps its place for a socket that nobody empties."""
    client = Client({**LONG, "stream": True}, patience=3)
    run(decoder, client, write_timeout=0.1)
    let_go(decoder)
    assert len(client.parts) == 3


def test_a_body_that_does_not_come_is_refused(decoder):
    """A connection that is held open by half a request."""
    client = Client(b"")
    run(decoder, client, body_timeout=0.05)
    status = client.parts[0]["status"]
    assert status == 408 and is_refusal(CHAT, status, json.loads(client.text))


def test_a_silent_stream_says_that_it_lives(decoder):
    """A proxy or client that gives up while a request waits for its turn."""
    held = decoder.submit(MESSAGES, max_tokens=400, stop_tokens=(), temperature=4.0)
    client = Client({"messages": MESSAGES, "stream": True}, leave=0.3)
    run(decoder, client, keepalive=0.02)
    assert client.text.count(b": keepalive") >= 2
    held.cancel()
