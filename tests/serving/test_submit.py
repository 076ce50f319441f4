"""Requests submitted to one engine thread: their tokens, their order, their ends, their errors."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import pytest
from helpers.served import BROKEN, TEXT, UNREADABLE, served_decoder

from dspark_mlx import BusyError, ClosedError, InputError, Limits
from dspark_mlx.engine.state import State
from dspark_mlx.reuse.kept import KeptPrompts
from dspark_mlx.targets.batch_check import runs_in_batches

MESSAGES = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
SAMPLED = {"temperature": 1.5, "max_tokens": 40, "stop_tokens": ()}
WAIT = 30


@pytest.fixture
def decoder(tmp_path):
    with served_decoder(tmp_path / "served") as made:
        yield made
    made.engine.target.close()


def solo(decoder, prompt=MESSAGES, **settings) -> list[int]:
    return [chunk.token for chunk in decoder.stream(prompt, **settings)]


def prompt(index: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"question {index} " * (1 + index % 5)}]


def eventually(condition) -> None:
    """Wait until something is so; the engine lets go of a request between two rounds."""
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_an_answer_is_that_of_stream(decoder):
    """Another text, other totals or another reason than the same request alone."""
    chunks = list(decoder.stream(MESSAGES))
    assert "".join(chunk.content for chunk in chunks) == TEXT
    answer = decoder.submit(MESSAGES).result(WAIT)
    assert answer.content == TEXT and answer.finish_reason == "stop"
    assert answer.text == "<think>\nLet me see</think>\n\n" + TEXT
    assert list(answer.tokens) == [chunk.token for chunk in chunks]
    assert answer.statistics.accepted == chunks[-1].statistics.accepted > 0
    assert answer.statistics.cached_tokens == 0


def test_reasoning_and_tool_calls_are_apart(decoder):
    """Markers in the content; a call that is not parsed, or parsed where no tools were given."""
    thought = decoder.submit(MESSAGES, thinking=True).result(WAIT)
    assert (thought.reasoning, thought.content) == ("Let me see", TEXT)
    plain = decoder.submit(MESSAGES, thinking=False).result(WAIT)
    assert (plain.text, plain.content, plain.reasoning) == (TEXT, TEXT, "")
    called = decoder.submit(MESSAGES, tools=TOOLS).result(WAIT)
    assert called.content == "I look." and called.finish_reason == "tool_calls"
    ((name, arguments),) = [(call.name, call.arguments) for call in called.tool_calls]
    assert (name, arguments) == ("weather", {"city": "Paris"})
    (last,) = list(decoder.stream(MESSAGES, tools=TOOLS))[-1:]
    assert last.finish_reason == "tool_calls"
    kwargs = {"broken": True}
    broken = decoder.submit(MESSAGES, tools=TOOLS, chat_template_kwargs=kwargs).result(WAIT)
    assert broken.content == "I try." + "".join(UNREADABLE) and broken.tool_calls == ()
    assert broken.finish_reason == "stop"
    raw = decoder.submit(MESSAGES, thinking=True, parts=False).result(WAIT)
    assert raw.content == raw.text and "<think>" in raw.content


def test_a_stop_string_is_named(decoder):
    """A client that cannot tell which of its strings ended the text."""
    answer = decoder.submit(MESSAGES, stop=["zzz", "world"]).result(WAIT)
    assert (answer.content, answer.stop_string) == ("Hello, ", "world")
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize("count", [8, pytest.param(64, marks=pytest.mark.slow)])
def test_concurrent_requests_equal_their_solo_runs(decoder, count):
    """Two readers in two threads who get each other's tokens; state shared by requests."""
    decoder.limits = Limits(active=5, waiting=count)
    settings = [{} if i % 3 else {**SAMPLED, "seed": i} for i in range(count)]
    alone = [solo(decoder, prompt(i), **settings[i]) for i in range(count)]
    assert len({tuple(tokens) for tokens in alone}) > count // 4

    def read(index: int) -> list[int]:
        return [chunk.token for chunk in decoder.submit(prompt(index), **settings[index])]

    with ThreadPoolExecutor(count) as pool:
        assert list(pool.map(read, range(count))) == alone
        pool.submit(mx.clear_streams).result()


def test_requests_take_turns(decoder):
    """A request that runs to its end while another waits."""
    seen: list[int] = []

    def noting(name: int):
        def processor(tokens, logits):
            seen.append(name)
            return logits

        return processor

    plain = decoder.plain()
    with plain:
        handles = [
            plain.submit(MESSAGES, logits_processors=[noting(i)], max_tokens=30, stop_tokens=())
            for i in range(2)
        ]
        for handle in handles:
            handle.result(WAIT)
    last = [max(i for i, name in enumerate(seen) if name == each) for each in range(2)]
    assert len(seen) >= 60 and abs(last[0] - last[1]) <= 8


def test_asyncio_reads_many_without_blocking(decoder):
    """An event loop that stands still while the engine decodes."""

    async def one(index: int) -> list[int]:
        return [c.token async for c in decoder.submit(prompt(index), **SAMPLED, seed=index)]

    async def main() -> tuple[list[list[int]], int]:
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                beats += 1
                await asyncio.sleep(0)

        heart = asyncio.create_task(beat())
        texts = await asyncio.gather(*map(one, range(4)))
        heart.cancel()
        answer = await decoder.submit(MESSAGES).answer()
        assert answer.content == TEXT
        return texts, beats

    texts, beats = asyncio.run(main())
    assert texts == [solo(decoder, prompt(i), **SAMPLED, seed=i) for i in range(4)]
    assert beats > 100


def test_a_slow_reader_pauses_its_own_request(decoder):
    """Memory that grows with a reader who does not read; others who wait for him."""
    decoder.limits = Limits(active=2, waiting=4, unread=8)
    made = []
    plain = {"max_tokens": 60, "stop_tokens": (), "temperature": 2.0, "seed": 1}
    slow = decoder.submit(
        MESSAGES, logits_processors=[lambda t, logits: (made.append(1), logits)[1]], **plain
    )
    first = next(slow)
    eventually(lambda: slow._buffer.full)
    count = len(made)
    for i in range(3):
        assert len(decoder.submit(prompt(i), **plain).result(WAIT).tokens) == 60
    assert len(made) <= count + 20  # one round may have been on its way
    tokens = [first.token, *(chunk.token for chunk in slow)]
    assert tokens == solo(decoder, **plain)


def test_cancelling_ends_the_request(decoder):
    """A request that nobody reads and that goes on."""
    forever = {"max_tokens": 400, "stop_tokens": (), "temperature": 2.0, "seed": 1}
    decoder.limits = Limits(active=1, waiting=4)
    running, waiting = decoder.submit(MESSAGES, **forever), decoder.submit(MESSAGES, **forever)
    token = next(running).token
    waiting.cancel()
    assert waiting.result(WAIT).tokens == ()
    running.cancel()
    answer = running.result(WAIT)
    assert answer.finish_reason == "cancelled"
    assert answer.tokens[0] == token and len(answer.tokens) < 400
    eventually(lambda: decoder.requests_now == (0, 0))
    with decoder.submit(MESSAGES, **forever) as handle:
        next(handle)
    eventually(lambda: decoder.requests_now == (0, 0))


def test_a_prompt_that_nobody_wants_is_not_read_to_its_end(decoder):
    """Minutes of prefill for a reader who has gone."""
    read = threading.Event()
    seen = []

    def start(active):
        def noting(done, total):
            seen.append(done)
            read.set()
            handle.cancel()

        ready.wait(WAIT)
        ids = decoder.encode(prompt(4) * 4)
        return decoder.add(active, ids, 5, progress=noting, prefill_step_size=16)

    prepared = decoder._prepare([1], 5, {"stop_tokens": ()})
    memory = decoder._reservation(prepared)
    ready = threading.Event()
    text = prepared.warned_text()
    handle = decoder._service.submit(decoder, decoder.engine, start, text, memory)
    ready.set()
    assert read.wait(WAIT)
    assert handle.result(WAIT).tokens == ()
    eventually(lambda: decoder.requests_now == (0, 0))
    assert seen == [0]


def test_a_dropped_handle_frees_its_place(decoder):
    """An iterator that is dropped in the middle and whose request holds its place for ever."""
    decoder.limits = Limits(active=1, waiting=1, unread=4)
    handle = decoder.submit(MESSAGES, max_tokens=300, stop_tokens=(), temperature=2.0)
    next(handle)
    del handle
    gc.collect()
    assert decoder.submit(MESSAGES).result(WAIT).content == TEXT


def test_a_full_queue_refuses(decoder):
    """A queue without end; a refused request that takes a place all the same."""
    decoder.limits = Limits(active=1, waiting=1, unread=2)
    forever = {"max_tokens": 300, "stop_tokens": (), "temperature": 2.0}
    held = [decoder.submit(MESSAGES, **forever) for _ in range(2)]
    for _ in range(3):
        with pytest.raises(BusyError, match="try again later"):
            decoder.submit(MESSAGES)
    for handle in held:
        handle.cancel()
    eventually(lambda: decoder.requests_now == (0, 0))
    assert decoder.submit(MESSAGES).result(WAIT).content == TEXT


def test_two_tasks_do_not_read_one_request(decoder):
    """Two tasks that wait for one handle, of which the first is never woken."""

    async def both():
        handle = decoder.submit(MESSAGES)
        found = await asyncio.wait_for(
            asyncio.gather(handle.answer(), handle.answer(), return_exceptions=True), WAIT
        )
        assert any(not isinstance(each, BaseException) for each in found)
        with pytest.raises(TimeoutError):
            slow = decoder.submit(MESSAGES, logits_processors=[waiting])
            await asyncio.wait_for(slow.answer(), 0.02)
        going.set()
        assert (await slow.answer()).content == TEXT  # a task that was cancelled waits no more

    def waiting(tokens, logits):
        going.wait(WAIT)
        return logits

    going = threading.Event()
    asyncio.run(both())


def test_an_error_reaches_its_reader_only(decoder):
    """One request's processor that takes the thread, or other requests, with it."""

    def failing(tokens, logits):
        raise KeyError("mine")

    others = [decoder.submit(prompt(i), **SAMPLED, seed=i) for i in range(3)]
    bad = decoder.submit(MESSAGES, logits_processors=[failing])
    with pytest.raises(KeyError, match="mine"):
        next(bad)
    assert list(bad) == []
    for _ in range(2):  # not an answer that looks as if it had been cancelled
        with pytest.raises(KeyError, match="mine"):
            bad.result(WAIT)
    nothing = decoder.submit(MESSAGES, logits_processors=[lambda t, logits: logits - mx.inf])
    with pytest.raises(InputError, match="no token left"):
        nothing.result(WAIT)
    for i, handle in enumerate(others):
        assert [c.token for c in handle] == solo(decoder, prompt(i), **SAMPLED, seed=i)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_an_exit_reaches_its_reader_only(decoder, kind):
    """`sys.exit()` in one request's processor that ends every reader's program."""

    def leaving(tokens, logits):
        if tokens.size > asked + 4:
            raise kind
        return logits

    asked = len(decoder.encode(MESSAGES))
    others = [decoder.submit(prompt(i), **SAMPLED, seed=i) for i in range(3)]
    bad = decoder.submit(MESSAGES, logits_processors=[leaving])
    with pytest.raises(kind):
        bad.result(WAIT)
    for i, handle in enumerate(others):
        assert [c.token for c in handle] == solo(decoder, prompt(i), **SAMPLED, seed=i)


def test_a_request_that_failed_is_let_go(decoder):
    """Caches as long as somebody keeps the error; and since a handle is in the traceback of its own
    error, a request that stays for ever."""

    class MineError(Exception):
        pass

    def failing(tokens, logits):
        raise MineError

    def states() -> list[State]:
        gc.collect()
        found = [each for each in gc.get_objects() if isinstance(each, State)]
        return [each for each in found if isinstance(each.error, MineError)]

    handle = decoder.submit(MESSAGES, logits_processors=[failing])
    with pytest.raises(MineError) as caught:
        handle.result(WAIT)
    eventually(lambda: decoder.requests_now == (0, 0))
    (held,) = states()
    assert held.error is caught.value and held.caches == [] and held.speculation is None
    del handle, caught, held
    assert states() == []


def test_a_device_error_ends_its_requests_and_no_others(decoder, monkeypatch):
    """An engine thread that ended for good, since what was left could not be kept."""
    engine = dataclasses.replace(decoder.engine, kept=KeptPrompts(1 << 28))
    assert runs_in_batches(engine.target)
    verify, failing = type(engine.target).verify, True

    def fails(target, tokens, *args):
        made = verify(target, tokens, *args)
        if failing and tokens.ndim == 2:
            raise RuntimeError("no memory")
        return made

    monkeypatch.setattr(type(engine.target), "verify", fails)
    with decoder.with_engine(engine, None) as keeping:
        handles = [keeping.submit(MESSAGES) for _ in range(2)]
        for handle in handles:
            with pytest.raises(RuntimeError, match="no memory"):
                handle.result(WAIT)
        failing = False
        later = [keeping.submit(MESSAGES) for _ in range(2)]
        assert [handle.result(WAIT).content for handle in later] == [TEXT] * 2


def test_what_cannot_be_used_is_refused_at_once(decoder):
    """An error that comes with the first chunk, or a thread that was begun for nothing."""
    for refused in (
        lambda: decoder.submit([]),
        lambda: decoder.submit(MESSAGES, temperature=-1),
        lambda: decoder.submit([1] * 600),
        lambda: decoder.submit(MESSAGES, banned_tokens=[10**6]),
        lambda: decoder.submit(MESSAGES, reference=[[10**6]]),
        lambda: setattr(decoder, "limits", Limits(active=0)),
    ):
        with pytest.raises(InputError):
            refused()
    assert decoder._service._service is None


def test_closing_ends_everything(decoder):
    """A reader that waits for a thread that has ended; a thread that stays."""
    forever = {"max_tokens": 400, "stop_tokens": (), "temperature": 2.0}
    decoder.limits = Limits(active=2, waiting=9)
    short = decoder.submit(MESSAGES)
    decoder.close(WAIT)
    assert short.result(WAIT).content == TEXT
    with pytest.raises(ClosedError):
        decoder.submit(MESSAGES)
    assert not [t for t in threading.enumerate() if t.name == "dspark_mlx engine"]
    assert solo(decoder)
    other = decoder.plain()
    with other:
        handles = [other.submit(MESSAGES, **forever) for _ in range(4)]
        next(handles[0])
    assert [handle.result(WAIT).finish_reason for handle in handles] == ["cancelled"] * 4


def test_a_dropped_decoder_ends_its_thread(decoder):
    """A thread and a model for every decoder that an app has ever made."""
    other = decoder.plain()
    other.submit(MESSAGES).result(WAIT)
    thread = other._service._service._thread
    del other
    gc.collect()
    thread.join(WAIT)
    assert not thread.is_alive()


def test_broken_is_a_word_of_the_toy(decoder):
    """The toy's template without its broken answer."""
    ids = decoder.encode(MESSAGES, chat_template_kwargs={"broken": True})
    assert decoder.tokenizer.decode(ids[-1:]) == BROKEN


def test_answers_go_on_while_a_long_prompt_is_encoded(decoder):
    """Seconds without a token for everybody, whenever somebody pastes a book."""
    decoder.submit(MESSAGES).result(WAIT)
    handle = decoder.submit(decoder.encode(MESSAGES))
    answers = []
    reader = threading.Thread(target=lambda: answers.append(handle.result(WAIT)))
    with decoder.tokenizer._lock:  # held as long as a prompt is encoded
        reader.start()
        reader.join(WAIT)
        assert answers and answers[0].text.endswith(TEXT)


def test_threads_encode_and_decode_at_once(decoder):
    """ "Already borrowed" of a fast tokenizer, whose settings an encoding changes."""
    tokenizer = decoder.tokenizer
    text = "Hello, world! " * 50
    ids = tokenizer.encode(text)

    def encode(_):
        return all(tokenizer.encode(text) == ids for _ in range(50))

    def decode(_):
        return all(tokenizer.decode(ids) == text for _ in range(50))

    with ThreadPoolExecutor(6) as pool:
        assert all([*pool.map(encode, range(3)), *pool.map(decode, range(3))])
