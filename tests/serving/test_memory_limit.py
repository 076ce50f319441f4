"""Requests of a decoder in a memory that tests choose: refused, one by one, or together."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from helpers.served import TEXT, served_decoder

from dspark_mlx import Decoder, Limits
from dspark_mlx.engine.active import ActiveRequests
from dspark_mlx.errors import MemoryLimitError
from dspark_mlx.reuse.kept import KeptPrompts
from dspark_mlx.serving.admission import Admission
from dspark_mlx.system.memory import Memory

MESSAGES = [{"role": "user", "content": "hi"}]
WAIT = 30


class Room:
    """A machine with room for a number of requests like `asked`, and for nothing else."""

    decoder: Decoder

    def __init__(self) -> None:
        self.total = 1 << 40
        self.admission = Admission(self.reading)

    def reading(self) -> Memory:
        held = sum(each.now for each in self.admission._held if each.holds)
        kept = self.decoder.kept_prompts.nbytes if self.decoder.kept_prompts else 0
        return Memory(self.total, self.total - held - kept, "a toy")

    def for_requests(self, count: float, **settings) -> None:
        prepared = self.decoder._prepare(MESSAGES, settings.get("max_tokens", 256), {})
        self.total = int(count * self.decoder._reservation(prepared).most)


@pytest.fixture
def room(tmp_path):
    made = Room()
    made.decoder = decoder = served_decoder(tmp_path / "served", admission=made.admission)
    with decoder:
        yield made
    decoder.engine.target.close()


def test_what_never_fits_is_refused_at_once(room):
    """A queue that keeps a request for ever; a batch that fails behind its first texts."""
    room.for_requests(0.9)
    decoder = room.decoder
    ids = decoder.encode(MESSAGES)
    for ask in (decoder.submit, decoder.stream, decoder.generate):
        with pytest.raises(MemoryLimitError, match=r"memory: found a request that needs .*kB"):
            ask(MESSAGES)
    with pytest.raises(MemoryLimitError):
        decoder.rounds(ids)
    with pytest.raises(MemoryLimitError):
        decoder.add(ActiveRequests(decoder.engine), ids)
    done = []
    with pytest.raises(MemoryLimitError):
        decoder.generate_batch([MESSAGES] * 2, progress=lambda *n: done.append(n))
    assert not done and decoder.requests_now == (0, 0)
    assert decoder.submit(MESSAGES, 20).result(WAIT).content == TEXT


def test_requests_wait_for_others_to_end(room):
    """All at once, which swaps; the second refused though the first ends; a queue that sleeps."""
    room.for_requests(1.2)
    decoder = room.decoder
    decoder.limits = Limits(active=4, waiting=8)
    seen = []

    def watching(tokens, logits):
        seen.append(decoder.requests_now)
        return logits

    settings = {"logits_processors": [watching]}
    handles = [decoder.submit(MESSAGES, **settings) for _ in range(3)]
    assert [handle.result(WAIT).content for handle in handles] == [TEXT] * 3
    assert {active for active, _ in seen} == {1} and max(waiting for _, waiting in seen) >= 1
    room.for_requests(8)
    seen.clear()
    handles = [decoder.submit(MESSAGES, **settings) for _ in range(3)]
    assert [handle.result(WAIT).content for handle in handles] == [TEXT] * 3


def test_a_batch_is_as_many_as_fit(room):
    room.for_requests(1.2)
    assert room.decoder.generate_batch([MESSAGES] * 3) == [room.decoder.generate(MESSAGES)] * 3
    assert not [each for each in room.admission._held if each.holds]


def test_a_stream_gives_its_memory_back(room):
    """A stream that was dropped, ended or never begun, and holds its memory for ever."""
    room.for_requests(1.2)
    decoder = room.decoder
    decoder.stream(MESSAGES)
    first = decoder.stream(MESSAGES)
    second = decoder.stream(MESSAGES)
    next(first)
    with pytest.raises(MemoryLimitError, match="Ask again when") as caught:
        next(second)
    assert caught.value.later
    with pytest.raises(MemoryLimitError):
        decoder.stream(MESSAGES)
    waits = decoder.submit(MESSAGES)
    with pytest.raises(TimeoutError):
        waits.result(0.05)
    first.close()
    assert waits.result(WAIT).content == TEXT
    assert "".join(chunk.content for chunk in decoder.stream(MESSAGES)) == TEXT


def test_an_added_request_gives_its_memory_back(room):
    room.for_requests(1.2)
    decoder = room.decoder
    ids, active = decoder.encode(MESSAGES), ActiveRequests(decoder.engine)
    request = decoder.add(active, ids)
    with pytest.raises(MemoryLimitError):
        decoder.add(active, ids)
    active.remove(request)
    decoder.add(active, ids)
    active.close()
    assert decoder.submit(MESSAGES).result(WAIT).content == TEXT


def test_memory_that_cannot_be_read_ends_the_request_alone(room, monkeypatch):
    """An error that takes the thread of all requests with it."""
    readings = iter([0])

    def unreadable(self, asked):
        if next(readings, None) is None:
            raise OSError("no such file")
        return 0, None

    decoder = room.decoder
    monkeypatch.setattr(Admission, "_judged", unreadable)
    with pytest.raises(OSError, match="no such file"):
        decoder.submit(MESSAGES).result(WAIT)
    monkeypatch.undo()
    assert decoder.submit(MESSAGES).result(WAIT).content == TEXT


def test_whoever_waits_can_leave_and_close_ends_it(room):
    """A cancelled request that keeps its place; a close that waits for memory that never comes."""
    room.for_requests(1.2)
    decoder = room.decoder
    held = decoder.stream(MESSAGES)
    next(held)
    first, second = decoder.submit(MESSAGES), decoder.submit(MESSAGES)
    first.cancel()
    assert first.result(WAIT).finish_reason == "cancelled"

    async def ask():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(second.answer(), 0.05)

    asyncio.run(ask())
    decoder.close(0.05)
    assert second.result(WAIT).finish_reason == "cancelled"
    held.close()


def test_kept_prompts_make_room(room):
    """A refusal beside kept prompts that nobody uses, or prompts dropped for nothing."""
    plain = room.decoder
    kept = KeptPrompts(1 << 30)
    room.decoder = decoder = plain.with_engine(replace(plain.engine, kept=kept), None)
    with decoder:
        decoder.generate(MESSAGES)
        before = kept.nbytes
        assert before > 0
        room.for_requests(1)
        room.total += before
        assert decoder.submit(MESSAGES).result(WAIT).content == TEXT
        assert kept.nbytes >= before
        room.total -= before
        long = [{"role": "user", "content": "so"}]
        assert decoder.submit(long).result(WAIT).statistics.cached_tokens == 0
        assert [chunk.content for chunk in decoder.stream(MESSAGES)]
