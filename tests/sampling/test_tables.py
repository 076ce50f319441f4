"""The rules on small tables, called directly: many more texts than the loop's tests can afford.

A target and a drafter of vocabulary 5 whose next token depends on the last two; three tokens are
drafted and a schedule that depends on the prefix alone verifies some of them. Seeds are fixed; a
comparison raises a false alarm once in 100,000.
"""

from __future__ import annotations

import itertools
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from helpers.reference_settings import reference
from helpers.slow_cases import some_slow
from helpers.toys import HORIZON, misfit

from dspark_mlx.sampling import Position, rejection
from dspark_mlx.sampling.make import make_sampler
from dspark_mlx.sampling.packing import pack, unpack
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.types import Draft

V, GAMMA, TEXTS = 5, 3, 1500
START = (1, 2)
RNG = np.random.default_rng(0)
TARGET = (1.5 * RNG.standard_normal((V, V, V))).astype(np.float32)
DRAFTER = (TARGET + 1.2 * RNG.standard_normal((V, V, V))).astype(np.float32)
CUT = (4, 0, 2)
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "cut": ({}, CUT),
    "token, cut": ({"verification": "token"}, CUT),
    "whole": ({}, None),
    "xtc": ({"xtc_probability": 0.5, "xtc_threshold": 0.1}, None),
    "xtc, cut": ({"xtc_probability": 0.5, "xtc_threshold": 0.1, "top_p": 0.9}, CUT),
    "penalties, cut": ({"frequency_penalty": 0.8, "repetition_penalty": 1.3}, (3, 1)),
    "greedy drafts, cut": ({"draft_temperature": 0.0}, CUT),
    "reproducible, cut": ({"reproducible": True, "xtc_probability": 0.5}, CUT),
}


def scheduled(drafted: list[int]) -> int:
    """Slots verified: whether one is depends on the token before it, never on its own."""
    length = 1
    while length < GAMMA and (drafted[length - 1] + length) % 3:
        length += 1
    return length


def block(sampler, prefix: list[int], ids) -> Draft:
    pick = sampler.propose(Position(len(prefix) - 1, mx.array(prefix, dtype=mx.int32)), GAMMA)
    columns = None if ids is None else mx.array(ids, dtype=mx.int32)
    tokens: list[mx.array] = []
    chosen, weights, text = [], [], list(prefix)
    for _ in range(GAMMA):
        row = DRAFTER[text[-2], text[-1]]
        column, weight = pick(
            mx.array(row if ids is None else row[list(ids)])[None], columns, tokens
        )
        tokens.append(column if columns is None else columns[column])
        chosen.append(column)
        weights.append(weight)
        text.append(int(tokens[-1]))
    joined = None if weights[0] is None else mx.concatenate(weights)
    return Draft(
        tokens=mx.concatenate(tokens),
        base_logits=mx.zeros((GAMMA, V)),
        logits=mx.zeros((GAMMA, V)),
        ids=columns,
        columns=mx.concatenate(chosen),
        weights=joined,
    )


def text(settings, seed: int, ids) -> tuple[int, ...]:
    sampler = make_sampler(Sampling(temperature=1.0, seed=seed, **settings), V, len(START))
    prefix = list(START)
    while len(prefix) < len(START) + HORIZON:
        draft = block(sampler, prefix, ids)
        drafted: Any = draft.tokens.tolist()
        length = scheduled(drafted)
        contexts = [*prefix, *drafted[:length]]
        rows = [TARGET[a, b] for a, b in itertools.pairwise(contexts)][-length - 1 :]
        place = Position(len(prefix) - 1, mx.array(prefix, dtype=mx.int32))
        judgement = sampler.judge(mx.array(np.stack(rows)), place, draft)
        prefix += unpack(pack(judgement, draft, length)).tokens
    return tuple(prefix[len(START) :][:HORIZON])


def distance(name: str, texts: int = TEXTS) -> float:
    settings, ids = CASES[name]
    counts = np.zeros((V,) * HORIZON, dtype=np.int64)
    for seed in range(texts):
        counts[text(settings, seed, ids)] += 1
    next_token = reference(**settings)
    joint = np.ones(counts.shape)
    for tokens in np.ndindex(counts.shape):
        prefix = list(START)
        for token in tokens:
            row = TARGET[prefix[-2], prefix[-1]].astype(np.float64)
            joint[tokens] *= next_token(row, tuple(prefix))[token]
            prefix.append(token)
    return misfit(counts, joint)


@pytest.mark.parametrize("name", some_slow(CASES, ("cut",)))
def test_texts_have_the_targets_distribution(name):
    """A residual or a surplus that forgets what no draft can propose; coins shared by a block."""
    assert distance(name) < 1


@pytest.mark.slow
def test_a_walk_that_is_not_reflected_is_caught(monkeypatch):
    """min(product of ratios, 1) is not the product of what was kept at 1 on the way."""

    class Unreflected:
        def __getattr__(self, name):
            return getattr(mx, name)

        def cummax(self, walk):
            return mx.maximum(walk, 0)

    monkeypatch.setattr(rejection, "mx", Unreflected())
    assert distance("whole") > 1


@pytest.mark.slow
def test_a_surplus_without_the_rest_is_caught(monkeypatch):
    """The tokens outside the draft vocabulary left out of what the block's rule weighs."""
    honest = rejection._keep_block

    def forgetful(ratios, p, q, ids, uniform, sound):
        inside = mx.zeros((p.shape[-1],)).at[ids].add(1)
        return honest(ratios, mx.where(inside > 0, p, -mx.inf), q, None, uniform, sound)

    # Without ids, q must have a column for every token.
    def widened(ratios, p, q, ids, uniform, sound):
        whole = mx.full((q.shape[0], p.shape[-1]), -mx.inf)
        return forgetful(
            ratios,
            p,
            mx.put_along_axis(whole, ids[None].astype(mx.int32), q, axis=-1),
            ids,
            uniform,
            sound,
        )

    monkeypatch.setattr(rejection, "_keep_block", widened)
    assert distance("cut") > 1


def test_a_text_may_end_where_nothing_is_allowed_any_more():
    """A row behind the end token, which a processor leaves empty, that decides over the end token:
    NaN that accepts it always, or an error for a row that is never used."""
    end = 4

    def over(tokens: mx.array, logits: mx.array) -> mx.array:
        return mx.where(tokens[-1] == end, -mx.inf, logits)

    counts = np.zeros((2, 2), dtype=np.int64)
    texts = TEXTS // 2
    for seed in range(texts):
        for side, settings in enumerate(({"logits_processors": (over,)}, {})):
            first = text_until(settings, seed, end)
            counts[side, int(first == end)] += 1
    share = counts[:, 1] / texts
    assert abs(share[0] - share[1]) < 4 * np.sqrt(2 * share[1] * (1 - share[1]) / texts)


def text_until(settings, seed: int, end: int) -> int:
    """The second token of a text, the end token if the first was it."""
    sampler = make_sampler(Sampling(temperature=1.0, seed=seed, **settings), V, len(START))
    prefix = list(START)
    draft = block(sampler, prefix, None)
    drafted: Any = draft.tokens.tolist()
    contexts = [*prefix, *drafted]
    rows = [TARGET[a, b] for a, b in itertools.pairwise(contexts)][-GAMMA - 1 :]
    place = Position(len(prefix) - 1, mx.array(prefix, dtype=mx.int32))
    verdict = unpack(pack(sampler.judge(mx.array(np.stack(rows)), place, draft), draft, GAMMA))
    assert not any(verdict.faults) or end in verdict.tokens
    return verdict.tokens[0]
