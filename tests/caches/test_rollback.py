"""Rolling back: after commit(n) the logits are those of a fresh run over the committed tokens."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from helpers.slow_cases import some_slow
from helpers.tiny_models import random_tokens, tiny
from mlx_lm.models.cache import CacheList, ConcatenateKVCache, KVCache, RotatingKVCache

from dspark_mlx.caches import cache_arrays, keep_rows, leaves, new_caches
from dspark_mlx.errors import InputError

WINDOW = 8
WIDTH = 5
SLIDING: dict[str, Any] = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": WINDOW,
}
MODELS = {
    "full": lambda: tiny("llama"),
    "sliding": lambda: tiny("llama", **SLIDING),
    "narrow": lambda: tiny("llama", **(SLIDING | {"sliding_window": 3})),
    "gemma3": lambda: tiny("gemma3_text"),
    "gpt_oss": lambda: tiny("gpt_oss"),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


class Session:
    """A model with its caches, and the committed tokens they should stand for."""

    def __init__(self, model) -> None:
        self.model = model
        self.caches = new_caches(model, "tiny")
        self.committed: list[int] = []

    def verify(self, committed: list[int], rejected: list[int]) -> None:
        """One forward over both, committing the first; checks every committed row's logits."""
        rows = committed + rejected
        logits = self.model(mx.array([rows]), cache=self.caches)[0]
        kept = len(committed)
        keep_rows(self.caches, len(rows), kept)
        self.committed += committed
        fresh = self.model(mx.array([self.committed]), cache=new_caches(self.model, "tiny"))[0]
        error = mx.abs(logits[:kept] - fresh[-kept:]).max() / mx.abs(fresh).max()
        assert float(error) < 1e-5, (len(self.committed), len(rows), kept)


@pytest.mark.parametrize("single_rows", [0, 6], ids=lambda n: f"{n} single rows")
@pytest.mark.parametrize("before", some_slow([1, 4, 7, 8, 9, 40], [4, 8, 40]))
def test_every_commit_equals_a_fresh_prefill(model, before, single_rows):
    """trim() of a rotating cache that has wrapped, before, at and long after the window; an
    in-place write that leaves the rows out of order for the next verify; a full cache that keeps
    rejected rows."""
    tokens = random_tokens(200, seed=before).tolist()
    for n in range(1, WIDTH + 1, 2):
        stream = iter(tokens)

        def take(count, stream=stream):
            return [next(stream) for _ in range(count)]

        session = Session(model)
        session.verify(take(before), [])
        for _ in range(single_rows):
            session.verify(take(1), [])
        session.verify(take(n), take(WIDTH - n))
        session.verify(take(1), take(WIDTH - 1))
        session.verify(take(1), [])
        session.verify(take(1), [])
        session.verify(take(2), take(2))
        session.verify(take(4), [])


def test_the_models_see_what_these_tests_vary(model):
    """Tiny models whose logits hardly depend on the context would pass with any cache."""
    tokens = random_tokens(12).tolist()
    fresh = model(mx.array([tokens]), cache=new_caches(model, "tiny"))[0, -1]
    shifted = model(mx.array([tokens[:-2] + tokens[-1:]]), cache=new_caches(model, "tiny"))[0, -1]
    assert (mx.abs(fresh - shifted).max() / mx.abs(fresh).max()).item() > 1e-2


def test_many_rounds_in_a_row_stay_exact(model):
    """An error of one row per commit, which only adds up over many rounds."""
    session, tokens = Session(model), iter(random_tokens(400).tolist())
    session.verify([next(tokens) for _ in range(5)], [])
    for i in range(24):
        width, kept = 1 + i % 6, 1 + (i * 7) % (1 + i % 6)
        rows = [next(tokens) for _ in range(width)]
        session.verify(rows[:kept], rows[kept:])


def test_both_cache_kinds_are_covered():
    """Models above that stopped using a rotating cache."""
    kinds = {name: {type(c) for c in new_caches(make(), name)} for name, make in MODELS.items()}
    assert kinds["full"] == {KVCache}
    assert all(kinds[name] == {KVCache, RotatingKVCache} for name in MODELS if name != "full")


def test_cache_arrays_lists_what_a_prefill_wrote(model):
    """A prefill chunk whose caches are never evaluated, so that the graph grows."""
    caches = new_caches(model, "tiny")
    assert cache_arrays(caches) == []
    model(random_tokens(3)[None], cache=caches)
    assert len(cache_arrays(caches)) == 2 * len(caches)


class WithCaches:
    """A model as far as its caches go."""

    def __init__(self, *caches) -> None:
        self.layers = list(caches)
        self._caches = list(caches)

    def make_cache(self):
        return self._caches


class OwnCache(KVCache):
    """A subclass of a known kind, which may keep anything."""


@pytest.mark.parametrize(
    "kind",
    [ConcatenateKVCache(), OwnCache(), CacheList(KVCache(), OwnCache())],
    ids=["other", "subclass", "in a list"],
)
def test_other_cache_kinds_are_refused_by_name(kind):
    """A subclass of a known kind rolled back as if it were plain K/V; one hidden in a list."""
    with pytest.raises(InputError) as caught:
        new_caches(WithCaches(KVCache(), kind), "some model")
    assert caught.value.where == "some model"
    assert type(leaves([kind])[-1]).__name__ in caught.value.found
    assert "RotatingKVCache" in caught.value.expected
