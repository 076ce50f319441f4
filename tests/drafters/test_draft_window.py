"""A drafter that attends to the newest positions only: what it holds, and what it drafts."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from helpers.golden_rounds import relative, tokens_of
from helpers.observed import observed
from helpers.pairs import GOLDEN, golden
from helpers.pairs import tokens_of as committed
from mlx_lm.models.cache import KVCache

import dspark_mlx
from dspark_mlx.drafters.base import DrafterContext
from dspark_mlx.drafters.context_cache import ContextCache
from dspark_mlx.errors import InputError
from dspark_mlx.profiling.pair import Pair

WINDOW, LONG = 20, 1500


class Whole(ContextCache):
    """A context that drops nothing, whose masks alone keep to the window."""

    def drop_old(self) -> None:
        pass


def features(drafter, rows: int, seed: int = 0) -> list[mx.array]:
    config = drafter.config
    rng = np.random.default_rng(seed)
    shape = (len(config.taps), rows, config.target_hidden_size)
    return list(mx.array(rng.normal(size=shape).astype(np.float32)))


def decoder_of(name: str, folder, draft_window: int | None):
    target = GOLDEN / "target_qwen3"
    return dspark_mlx.load(
        target, golden(name), "full", precision="float32", draft_window=draft_window
    )


@pytest.fixture(params=["vanilla", "rnn"])
def drafter(request, tmp_path):
    decoder = decoder_of(request.param, tmp_path, WINDOW)
    yield decoder.engine.drafter
    decoder.engine.target.close()


def test_what_is_dropped_was_out_of_sight(drafter):
    """A block drafted from other rows, or at other positions, than the mask alone lets it see."""
    count = drafter.config.num_layers
    cut = drafter.new_context()
    whole = DrafterContext([Whole(WINDOW) for _ in range(count)], cut.confidence_temperatures)
    taps = features(drafter, LONG)
    place = 0
    for rows in (300, 400, 1, 3, 796):
        part = [tap[place : place + rows] for tap in taps]
        for context in (cut, whole):
            drafter.extend(context, part, tokens_of(part))
            drafter.flush(context)
        place += rows
        found, expected = (observed(drafter, c, mx.array([5])) for c in (cut, whole))
        assert relative(found.logits, expected.logits) < 1e-5
        assert cut.length == whole.length == place
    assert cut.caches[0].start > LONG - 2 * 256 - WINDOW
    assert cut.caches[0].keys.shape[2] <= 3 * 256 < whole.caches[0].keys.shape[2]


def test_the_window_is_the_newest_positions(drafter):
    """A window that is one row too long or too short."""
    taps = features(drafter, 60)
    changed = features(drafter, 60, seed=1)
    drafts = {}
    for other in (0, 60 - WINDOW - 1, 60 - WINDOW):
        mixed = [mx.concatenate([b[:other], a[other:]]) for a, b in zip(taps, changed, strict=True)]
        if other == 60 - WINDOW:
            mixed = [mx.concatenate([b[: other + 1], a[other + 1 :]]) for a, b in
                zip(taps, changed, strict=True)]  # fmt: skip
        context = drafter.new_context()
        drafter.extend(context, mixed, tokens_of(mixed))
        drafts[other] = observed(drafter, context, mx.array([5])).logits
    assert relative(drafts[60 - WINDOW - 1], drafts[0]) < 1e-6
    assert relative(drafts[60 - WINDOW], drafts[0]) > 1e-4


@pytest.mark.parametrize("window", [1, 4, 1000])
def test_the_output_is_the_same(tmp_path, window):
    """A setting of the drafter that changes the target's text."""
    prompt = list(range(3, 60))
    texts = []
    for draft_window in (None, window):
        decoder = decoder_of("vanilla", tmp_path, draft_window)
        texts.append(committed(decoder.rounds(prompt, 40, stop_tokens=())))
        decoder.engine.target.close()
    assert texts[0] == texts[1]


def test_a_window_has_its_own_speed_profile(tmp_path):
    """Times, and what is learned of acceptance, of a drafter that sees more."""
    keys = set()
    for draft_window in (None, 4, 8):
        decoder = decoder_of("vanilla", tmp_path, draft_window)
        keys.add(Pair.of(decoder).key())
        decoder.engine.target.close()
    assert len(keys) == 3


def test_a_shorter_window_of_the_packaging_stays(drafter):
    config = dataclasses.replace(drafter.config, windows=(5,) * drafter.config.num_layers)
    assert set(config.with_window(WINDOW).windows) == {5}
    assert set(config.with_window(3).windows) == {3}


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_a_window_that_means_nothing_is_refused(value):
    with pytest.raises(InputError, match="draft_window"):
        dspark_mlx.load(GOLDEN / "target_qwen3", golden("vanilla"), draft_window=value)


def test_trimmed_rows_are_written_again():
    """Rows of a block that stay, or positions that move when old rows are dropped."""
    rng, cache, plain = np.random.default_rng(0), ContextCache(WINDOW), KVCache()
    for i in range(80):
        rows = mx.array(rng.normal(size=(1, 1, 12, 4)).astype(np.float32))
        cache.drop_old()
        keys, values = cache.update_and_fetch(rows, -rows)
        expected, _ = plain.update_and_fetch(rows, -rows)
        assert cache.offset == plain.offset and cache.start <= max(plain.offset - WINDOW, 0)
        assert mx.array_equal(keys, expected[..., cache.start :, :]).item(), i
        assert mx.array_equal(values, -keys).item()
        cache.trim(5)
        plain.trim(5)
    assert cache.start > 0
