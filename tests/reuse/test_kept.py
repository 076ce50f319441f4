"""The store of kept prompts: its bytes, its threads, and what decoders and conversations see."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from helpers.served import TEXT, served_decoder
from helpers.slow_cases import some_slow

from dspark_mlx import InputError
from dspark_mlx.engine.rounds import rounds
from dspark_mlx.reuse import kept as kept_module
from dspark_mlx.reuse.budget import budget
from dspark_mlx.reuse.disk import Disk
from dspark_mlx.reuse.kept import KeptPrompts
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.system.memory import device_memory
from dspark_mlx.targets.model_arrays import ModelArrays

from .test_hits import cold, engine_with, prompt_of, run, same

PLENTY = 1 << 30
HI = {"role": "user", "content": "hi"}


@pytest.fixture
def decoder(tmp_path):
    made = served_decoder(tmp_path / "served")
    keeping = made.with_engine(replace(made.engine, kept=KeptPrompts(PLENTY)), None)
    with keeping:
        yield keeping
    made.engine.target.close()


@pytest.mark.parametrize("name", ["full attention", "delta net and attention"])
def test_no_more_bytes_are_kept_than_may_be(name):
    """A store that grows with every request; one that counts what it does not hold."""
    engine = engine_with(name)
    run(engine, prompt_of(30))
    one = engine.kept.nbytes
    assert one > 0
    limited = replace(engine, kept=KeptPrompts(3 * one))
    for seed in range(5):
        prompt = prompt_of(30, seed=seed)
        run(limited, prompt)
        assert 0 < limited.kept.nbytes <= 3 * one
        again = run(limited, prompt)
        assert again[0].cached_tokens == 29
        same(again, run(cold(engine), prompt))
    tiny = replace(engine, kept=KeptPrompts(16))
    run(tiny, prompt_of(30))
    assert tiny.kept.nbytes == 0
    limited.kept.clear()
    assert limited.kept.nbytes == 0
    engine.target.close()


@pytest.mark.parametrize("name", ["full attention", "delta net and attention"])
def test_no_more_arrays_are_kept_than_may_be(name, monkeypatch):
    """Thousands of short prompts of a small model, of which each has arrays for every layer: on
    Metal MLX ends with an error long before the bytes are used up."""
    engine = engine_with(name)
    run(engine, prompt_of(12, seed=20))
    (tree,) = engine.kept._trees.values()
    monkeypatch.setattr("dspark_mlx.reuse.kept.MOST_ARRAYS", 4 * tree.count)
    for seed in range(6):
        run(engine, prompt_of(12, seed=seed))
        assert 0 < tree.count <= kept_module.MOST_ARRAYS
    assert run(engine, prompt_of(12, seed=5))[0].cached_tokens == 11
    assert run(engine, prompt_of(12, seed=20))[0].cached_tokens == 0
    engine.target.close()


@pytest.mark.parametrize(
    "name",
    some_slow(
        ["full attention", "delta net and attention", "eagle3"], ("delta net and attention",)
    ),
)
def test_threads_share_a_store(name):
    """A prefix that one thread takes while another puts its own in, or drops it for room."""
    engine = engine_with(name)
    system = prompt_of(15)
    prompts = [[*system, *prompt_of(3 + i % 3, seed=i)] for i in range(6)]
    expected = [run(cold(engine), prompt) for prompt in prompts]
    run(engine, prompts[0])
    small = replace(engine, kept=KeptPrompts(3 * engine.kept.nbytes))
    start = threading.Barrier(4)

    def work(worker: int) -> int:
        start.wait()
        cached = 0
        for i in np.random.default_rng(worker).permutation(6).tolist():
            made = run(small, prompts[i])
            same(made, expected[i])
            cached += made[0].cached_tokens
        return cached

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) > 0
    engine.target.close()


def test_a_request_that_another_thread_ends_while_the_store_is_taken_waits_for_nothing():
    """Garbage collection that ends a request inside the store, and waits for its own thread."""
    engine = engine_with("full attention")
    prompt = prompt_of(12)
    sampler = make_sampler(Sampling(), engine.target.vocab_size, len(prompt))
    made = rounds(engine, prompt, max_tokens=20, stop_tokens=(), sampler=sampler)
    next(made)
    with engine.kept._lock:
        made.close()
    assert run(engine, prompt)[0].cached_tokens == len(prompt) - 1
    engine.target.close()


def test_weights_that_are_exchanged_are_followed(tmp_path):
    """Keys and values of other weights or another adapter, in memory, on disk, or of a request that
    ran meanwhile: a text that no weights write."""
    engine, prompt = engine_with("full attention"), prompt_of(20)
    own = ModelArrays(engine.target.model)
    kept = KeptPrompts(PLENTY, disk=Disk(tmp_path, "ab" * 32), weights=own)
    engine = replace(engine, kept=kept)
    first = run(engine, prompt)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    layer = engine.target.model.layers[0].self_attn.v_proj
    before, layer.weight = layer.weight, -layer.weight
    other = run(engine, prompt)
    assert other[0].cached_tokens == 0
    same(other, run(cold(engine), prompt))
    assert [done.tokens for done in other] != [done.tokens for done in first]
    assert run(engine, prompt)[0].cached_tokens == 19

    sampler = make_sampler(Sampling(), engine.target.vocab_size, len(prompt))
    running = rounds(engine, prompt, max_tokens=20, stop_tokens=(), sampler=sampler)
    next(running)
    layer.weight = before
    running.close()
    again = run(engine, prompt)
    assert again[0].cached_tokens == 0
    same(again, first)
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")} != {}
    kept.close()
    disk = Disk(tmp_path, "ab" * 32)
    restarted = replace(engine, kept=KeptPrompts(PLENTY, disk=disk, weights=own))
    assert run(restarted, prompt)[0].cached_tokens == 19
    disk.close()
    engine.target.close()


def test_a_conversation_reads_each_turn_once(decoder):
    """A second turn that reads the first one again; messages that are lost or doubled."""
    talk = decoder.conversation([{"role": "system", "content": "be brief"}], max_tokens=40)
    first = list(talk.send("hi"))
    assert talk.messages[1:] == [HI, {"role": "assistant", "content": TEXT, **reasoned(talk)}]
    assert first[-1].statistics.cached_tokens == 0
    asked = [*talk.messages, HI]
    shared = len(decoder.encode(asked[:2])) - 10
    second = list(talk.send("hi"))
    assert second[-1].statistics.cached_tokens >= shared > 10
    assert second[-1].statistics.accepted == first[-1].statistics.accepted
    assert len(talk.messages) == 5
    submitted = decoder.submit(asked, 40).result(30)
    assert submitted.statistics.cached_tokens == len(decoder.encode(asked)) - 1
    assert list(submitted.tokens) == [chunk.token for chunk in second]


def reasoned(talk) -> dict[str, str]:
    message = talk.messages[-1]
    return {name: message[name] for name in ("reasoning_content",) if name in message}


def test_a_conversation_keeps_what_was_read_and_nothing_that_was_refused(decoder):
    """An answer that was left, and is lost; a message that was refused, and sent again."""
    talk = decoder.conversation()
    answer = talk.send("hi", max_tokens=40)
    read = "".join(next(answer).content for _ in range(8))
    answer.close()
    assert talk.messages[0] == HI and talk.messages[1]["content"] == read
    before = talk.messages
    with pytest.raises(InputError):
        talk.send("hi", temperature=-1.0)
    with pytest.raises(InputError, match="message: found 3"):
        talk.send(3)
    assert talk.messages is before


def test_an_answer_that_fails_leaves_the_conversation_as_it_was(decoder):
    """Half an answer of a processor that raised, which the next turn would go on from."""
    talk = decoder.conversation()
    list(talk.send("hi", max_tokens=4))
    before = talk.messages

    start = len(decoder.encode([*before, HI]))

    def breaks(tokens, logits):
        if tokens.size > start + 6:
            raise ValueError("broken")
        return logits

    answer = talk.send("hi", max_tokens=40, logits_processors=[breaks])
    with pytest.raises(ValueError, match="broken"):
        list(answer)
    assert talk.messages == before


def test_the_next_message_ends_an_answer_that_was_left(decoder):
    """A turn that is lost because its answer was still open when the next one was asked for."""
    talk = decoder.conversation([], max_tokens=40)
    for _ in range(3):
        answer = talk.send("hi")
        for _ in range(8):
            next(answer)
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 2
    list(talk.send("so"))
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 4
    talk.send("never read")
    list(talk.send("hi"))
    assert [m["content"] for m in talk.messages if m["role"] == "user"] == [*["hi"] * 3, "so", "hi"]


def test_other_decoders_of_a_target_keep_their_own(decoder):
    """A plain decoder that begins with a drafter's context, or the other way round."""
    assert decoder.with_scheduler("full").kept_prompts is decoder.kept_prompts
    plain = decoder.plain()
    assert plain.kept_prompts is not decoder.kept_prompts
    list(decoder.stream([HI]))
    assert plain.kept_prompts.nbytes == 0
    assert [c.token for c in plain.stream([HI])] == [c.token for c in decoder.stream([HI])]


def test_the_budget_is_a_part_of_the_memory():
    """A store that takes all of it, or a negative part."""
    assert 0 < budget(None) <= device_memory().total // 4
    assert budget(0) == 0 and budget(10**13) == 10**13
    for wrong in (-1, 1.5, "much"):
        with pytest.raises(InputError, match="prompt_cache_bytes"):
            budget(wrong)
