"""Long contexts: what memory grows by is the caches' own, and statistics say it."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from helpers.families import family
from helpers.hand_made import hand_made_profile
from helpers.scripted import ScriptedDrafter
from helpers.tiny_models import tiny
from helpers.toys import engine_of, toy_config, toy_target

from dspark_mlx.benchmark.plain import plain_run
from dspark_mlx.caches import bytes_per_token
from dspark_mlx.engine.rounds import rounds
from dspark_mlx.engine.state import Engine
from dspark_mlx.engine.statistics import Tally
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.targets.tap import Target
from dspark_mlx.terminal.draft_painter import statistics_line

VOCABULARY = 64
FLOAT = 4


def decode(window: int | None, length: int, tokens: int = 8, chunk: int = 256):
    """Rounds of a random pair behind a long prompt, and MLX's memory before each of its chunks."""
    target = toy_target(VOCABULARY)
    config = toy_config(target, "vanilla", 4)
    engine = engine_of(target, FullScheduler(), config.with_window(window) if window else config)
    seen: dict[int, int] = {}

    def progress(done: int, total: int) -> None:
        mx.clear_cache()
        seen[done] = mx.get_active_memory()

    prompt = np.random.default_rng(0).integers(0, VOCABULARY, length).tolist()
    made = rounds(
        engine,
        prompt,
        max_tokens=tokens,
        stop_tokens=(),
        sampler=make_sampler(Sampling(), VOCABULARY),
        prefill_step_size=chunk,
        progress=progress,
    )
    found = list(made)
    target.close()
    return found, seen


def test_bytes_of_a_token_are_told():
    """A layer, keys or values that are not counted, or a window that is."""
    for window, drafter in ((None, 2 * 16 * FLOAT), (9, 0)):
        found, _ = decode(window, 40)
        tally = Tally(40)
        for round_ in found:
            tally.add(round_)
        statistics = tally.statistics()
        # Two layers of two heads of 16, and one of one head.
        assert statistics.target_bytes_per_token == 2 * 2 * 2 * 16 * FLOAT
        assert statistics.drafter_bytes_per_token == drafter
        assert 0 < statistics.rollback_seconds < statistics.host_seconds
        kilobytes = f"context 0.5 + {drafter / 1e3:.1f} kB a token"
        assert kilobytes in statistics_line(statistics)


@pytest.mark.parametrize(
    "make, expected",
    [
        # One of three layers has no window; a head's 16 numbers, two heads, keys and values.
        (lambda: tiny("gpt_oss"), 2 * 2 * 16 * FLOAT),
        (lambda: family("mamba2"), 0),
    ],
    ids=["window", "states"],
)
def test_what_stops_growing_takes_nothing(make, expected):
    target = Target(make(), (), "tiny")
    caches = target.model.make_cache()
    target(mx.arange(30), caches)
    assert bytes_per_token(caches) == expected
    target.close()


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 64])
def test_32k_tokens_grow_by_their_caches_alone(window):
    """Taps of read chunks, or a graph of the drafter's context, that stay in memory."""
    found, seen = decode(window, 32768)
    first = found[0]
    assert first.drafter_bytes_per_token == (0 if window else 2 * 16 * FLOAT)
    each = first.target_bytes_per_token + first.drafter_bytes_per_token
    start, end = 8192, 32512
    grown = seen[end] - seen[start]
    # Caches grow in steps of 256 positions, which the chunks are as long as.
    assert grown <= (end - start) * each * 1.01 + (256 << 10)
    assert grown >= (end - start) * each * 0.98
    assert sum(len(round_.tokens) for round_ in found) == 8


@pytest.mark.parametrize("name", ["llama", "internlm3"])
def test_several_rows_end_where_a_dynamic_rope_begins(name):
    """Rows of a block that are all turned by the last one's base, or as many as padding makes."""
    scaling = {"type": "dynamic", "rope_type": "dynamic", "factor": 4.0}
    model = family(name, max_position_embeddings=40, rope_scaling=scaling)
    target, prompt = Target(model, (-1, 0), name), list(range(3, 12))
    plain = plain_run(target, prompt, 60, ()).tokens
    drafter = ScriptedDrafter([*prompt, *plain], target.vocab_size, wrong=0.3)
    wide = hand_made_profile([1.0 + rows % 5 for rows in range(5)], draft=0.1, plain=1.0)
    engine = Engine(target, drafter, FullScheduler(), wide)
    made, sampler = [], make_sampler(Sampling(), target.vocab_size)
    for done in rounds(engine, prompt, max_tokens=60, stop_tokens=(), sampler=sampler):
        made += [(token, done.drafted) for token in done.tokens]
    assert [token for token, _ in made] == plain
    drafted = [number for _, number in made]
    assert any(drafted[:20]) and not any(drafted[35:])
    target.close()
