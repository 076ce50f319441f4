"""A thousand mixed requests on a loopback port: good ones, and all ways to be a bad client."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from pathlib import Path
from urllib.parse import urlsplit

import mlx.core as mx
import pytest
from helpers.http_served import MESSAGES, TOOLS, listening
from helpers.served import TEXT

from dspark_mlx import Limits

pytestmark = pytest.mark.slow
pytest.importorskip("uvicorn", reason="the extra server is not installed")
COUNT, AT_ONCE, WAIT = 1000, 16, 120
KINDS = ("whole", "stream", "tools", "leave", "slow", "half_open", "bad", "cancel_early", "raw")
CHAT = "/v1/chat/completions"
LONG = {"max_tokens": 200, "temperature": 4.0, "chat_template_kwargs": {"enable_thinking": False}}


def memory() -> float:
    """Resident memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


class Soak:
    """Clients made of sockets, which can do what no HTTP library does."""

    def __init__(self, address: str) -> None:
        self._address = urlsplit(address)
        self.first: list[float] = []
        self.done: dict[str, int] = {}

    async def one(self, number: int) -> None:
        rng = random.Random(number)
        kind = rng.choice(KINDS)
        reader, writer = await asyncio.open_connection(self._address.hostname, self._address.port)
        try:
            async with asyncio.timeout(WAIT):
                await getattr(self, f"_{kind}")(rng, reader, writer)
        finally:
            writer.transport.abort()
        self.done[kind] = self.done.get(kind, 0) + 1

    def _send(self, writer, body, path=CHAT, cut=None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Connection: close\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        writer.write((head.encode() + content)[:cut])

    async def _answer(self, reader, begun=None) -> tuple[int, bytes]:
        """The status and the rest, until the server ends the connection."""
        head = await reader.readuntil(b"\r\n\r\n")
        if begun is not None:
            await reader.readuntil(b'"content": "')
            await reader.readuntil(b'"delta": {"')
            self.first.append(time.monotonic() - begun)
        return int(head.split()[1]), await reader.read()

    async def _whole(self, rng, reader, writer) -> None:
        self._send(writer, {"messages": MESSAGES})
        status, body = await self._answer(reader)
        assert status == 200 and TEXT.encode() in body

    async def _stream(self, rng, reader, writer) -> None:
        begun = time.monotonic()
        self._send(writer, {"messages": MESSAGES, "stream": True})
        status, body = await self._answer(reader, begun)
        assert status == 200 and b"[DONE]" in body

    async def _tools(self, rng, reader, writer) -> None:
        self._send(writer, {"messages": MESSAGES, "tools": TOOLS, "n": 2})
        status, body = await self._answer(reader)
        assert status in (200, 429) and (status == 429 or body.count(b'"weather"') == 2)

    async def _leave(self, rng, reader, writer) -> None:
        self._send(
            writer, {"messages": MESSAGES, "stream": True, **LONG, "seed": rng.randrange(99)}
        )
        await reader.readuntil(b"data: ")
        await asyncio.sleep(rng.random() * 0.1)

    async def _cancel_early(self, rng, reader, writer) -> None:
        self._send(writer, {"messages": MESSAGES, **LONG})
        await asyncio.sleep(rng.random() * 0.05)

    async def _slow(self, rng, reader, writer) -> None:
        self._send(writer, {"messages": MESSAGES, "stream": True, **LONG, "logprobs": True})
        found = b""
        for _ in range(8):
            found += await reader.read(200)
            await asyncio.sleep(0.05)
        assert b"[DONE]" in found + await reader.read()

    async def _half_open(self, rng, reader, writer) -> None:
        self._send(writer, {"messages": MESSAGES}, cut=rng.choice([0, 5, 60, 130, 150]))
        await asyncio.sleep(rng.random() * 0.3)

    async def _bad(self, rng, reader, writer) -> None:
        bodies = [b"{", b"[]", b"\xff", {"messages": 3}, {"messages": MESSAGES, "top_p": "x"}]
        self._send(writer, rng.choice(bodies), rng.choice([CHAT, "/v1/messages", "/v1/responses"]))
        status, body = await self._answer(reader)
        assert status == 400 and b'"error"' in body

    async def _raw(self, rng, reader, writer) -> None:
        writer.write(rng.randbytes(200) + b"\r\n\r\n")
        await reader.read(100)

    async def run(self, numbers: range) -> None:
        """All of them, so many at once."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def gated(number: int) -> None:
            async with gate:
                await self.one(number)

        async with asyncio.TaskGroup() as group:
            for number in numbers:
                group.create_task(gated(number))


def test_soak(tmp_path):
    """A request that is never let go of, memory that grows, a client that stops the others."""
    limits = Limits(active=8, waiting=32)
    with listening(tmp_path, limits, body_timeout=2.0, write_timeout=5.0) as (address, decoder):
        soak = Soak(address)
        levels: list[tuple[float, float]] = []
        begun = time.monotonic()
        quarter = COUNT // 4
        for part in range(4):
            asyncio.run(soak.run(range(part * quarter, (part + 1) * quarter)))
            end = time.monotonic() + 30
            while decoder.requests_now != (0, 0):
                assert time.monotonic() < end, decoder.requests_now
                time.sleep(0.01)
            mx.clear_cache()
            levels.append((memory(), mx.get_active_memory() / 1e6))
        seconds = time.monotonic() - begun
        cuts = statistics.quantiles(soak.first, n=20)
        print(f"\n{COUNT} requests in {seconds:.0f} s: {soak.done}")
        print(f"first token: p50 {cuts[9]:.3f} s, p95 {cuts[18]:.3f} s of {len(soak.first)}")
        print("MB resident, MLX's:", [(round(a, 1), round(b, 2)) for a, b in levels])
        assert sum(soak.done.values()) == COUNT and len(soak.done) == len(KINDS)
        # The first quarter fills allocators and caches of compiled parts.
        assert levels[-1][0] - levels[1][0] < 30
        assert abs(levels[-1][1] - levels[0][1]) < 1
