"""Speculative texts with compiled verify forwards are those without, in float32."""

from __future__ import annotations

import mlx.core as mx
import pytest
from helpers.pairs import TARGET, golden, tokens_of, traces
from helpers.served import served_decoder
from helpers.slow_cases import some_slow

import dspark_mlx
from dspark_mlx.caches import bytes_at
from dspark_mlx.serving.footprint import Footprint

SETTINGS = {
    "greedy": {},
    "seeded": {"temperature": 1.0, "seed": 3},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.2},
    "reproducible": {"temperature": 0.9, "seed": 2, "reproducible": True},
}
WAIT = 60


@pytest.fixture
def decoder():
    made = dspark_mlx.load(TARGET, golden("vanilla"), "full", prompt_cache_bytes=1 << 26)
    yield made
    made.close()
    made.engine.target.close()


PROMPT = traces("vanilla")[0]["prompt_ids"]


@pytest.mark.parametrize("settings", some_slow(SETTINGS, ("greedy", "seeded")))
def test_texts_are_those_without(built_anew, decoder, settings):
    """Rejected rows that are read, a bonus token of another row, a kept prompt's caches."""
    given = {"stop_tokens": (), **SETTINGS[settings]}
    want = list(decoder.rounds(PROMPT, 60, **given))
    decoder.engine.kept.clear()
    decoder.engine.target.use_compiled()
    for _ in range(2):
        got = list(decoder.rounds(PROMPT, 60, **given))
        assert tokens_of(got) == tokens_of(want)
        assert [done.accepted for done in got] == [done.accepted for done in want]
    assert decoder.engine.target.compiled._graphs
    # What was kept of a longer text is cut where the next one differs.
    longer = PROMPT + tokens_of(want)[:20]
    decoder.engine.target.compiled = None
    decoder.engine.kept.clear()
    plain = tokens_of(decoder.rounds(longer, 20, **given))
    decoder.engine.target.use_compiled()
    for _ in range(2):
        assert tokens_of(decoder.rounds(longer, 20, **given)) == plain


def test_requests_join_and_leave_in_the_engine_thread(tmp_path):
    """Graphs of the main thread in the engine's, or of a batch of other requests."""
    asked: list[dict] = [
        {"max_tokens": n, "stop_tokens": (), "temperature": 1.5 * (i % 2), "seed": i}
        for i, n in enumerate((40, 12, 33, 5, 24))
    ]
    prompts = [[{"role": "user", "content": f"question {i} " * (1 + i)}] for i in range(5)]

    with served_decoder(tmp_path / "served") as decoder:

        def alone(i: int) -> list[int]:
            return [chunk.token for chunk in decoder.stream(prompts[i], **asked[i])]

        want = list(map(alone, range(5)))
        target = decoder.engine.target
        target.use_compiled()
        # One request in this thread first, whose graphs the engine's thread finds.
        assert alone(0) == want[0]
        handles = [decoder.submit(prompts[i], **asked[i]) for i in range(5)]
        for handle, tokens in zip(handles, want, strict=True):
            assert list(handle.result(WAIT).tokens) == tokens
        assert {requests for requests, _, _ in target.compiled._graphs} >= {1, 2, 3}
        assert alone(0) == want[0]
        target.close()


def test_memory_is_that_of_all_slots(decoder):
    """Requests that are taken on and then need an eighth more than was left for them."""
    footprint, target = Footprint(decoder.engine, {}), decoder.engine.target
    caches = target.new_caches()
    target(mx.array(PROMPT), caches)
    plain = footprint.caches(40_000, 8)
    target.use_compiled()
    more = bytes_at(caches, 40_960, 8) - bytes_at(caches, 40_000, 8)
    assert footprint.caches(40_000, 8) - plain == more > 0
